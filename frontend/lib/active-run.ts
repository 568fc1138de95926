/**
 * Responses that go on without a reader, which the service calls active runs: stopping one, and following one after a reload
 * or a cut connection. Independent of React and Next.js.
 */

import { ServiceError, USER_MESSAGES, readJson, responseError } from './errors'
import { type Session, withSecret } from './page-session'
import { service } from './service'

/** The response header with the id of the run. */
export const RUN_HEADER = 'ChatKit-Run'
/** The request header that lets the response go on when this page disconnects. */
export const GOES_ON = ['ChatKit-On-Disconnect', 'continue'] as const

const POLL_MS = 1_000
const SLOWDOWN = 1.1 // each pause is so much longer than the one before, because each user's requests are limited
const MAX_POLL_MS = 5_000
const MAX_FAILED_POLL_MS = 10_000 // while the service can't be reached
const MAX_RETRY_AFTER_MS = 60_000
const STOP_ATTEMPTS = 4
const NEWEST_ITEMS = 100

/**
 * What to show about the run of the conversation: it is being followed, it can be retried, the service can't be reached, it
 * goes on because the user's stop has failed, or the user's retry has failed.
 */
export type RunStatus = 'active' | 'interrupted' | 'unreachable' | 'not_stopped' | 'not_repeated'

export const RUN_MESSAGES: Record<RunStatus, string> = {
  active: 'A response is being written…',
  interrupted: 'The response was interrupted.',
  unreachable: USER_MESSAGES.network,
  not_stopped: 'The response could not be stopped.',
  not_repeated: 'The response could not be repeated.',
}

/** Whether to offer `RunFollower.stop()`. */
export function canStop(status: RunStatus | null): boolean {
  return status === 'active' || status === 'not_stopped'
}

/** Whether to offer `RunFollower.retry()`. */
export function canRetry(status: RunStatus | null): boolean {
  return status === 'interrupted' || status === 'not_repeated'
}

interface Followed {
  /** `null`: a new conversation whose id the page does not know. */
  threadId: string | null
  isPolled: boolean
  isStopping?: boolean
  runId?: string
  /** The run that could not be stopped. */
  notStopped?: string
}

let isUnloading = false
if (typeof window !== 'undefined') {
  window.addEventListener('pagehide', () => (isUnloading = true))
  window.addEventListener('pageshow', () => (isUnloading = false))
}

/** Follows the active run of the conversation that a chat shows. */
export class RunFollower {
  private fetchUpdates: (() => Promise<void>) | null = null
  private followed: Followed | null = null
  private shown: string | null = null

  /** `onStatus` is called with the status to show, `null` for none. It may be called with the same one again. */
  constructor(
    private readonly session: Session,
    private readonly onStatus: (status: RunStatus | null) => void,
  ) {}

  /** Set the function that updates the chat: that of ChatKit's component. Nothing is followed before that. */
  connect(fetchUpdates: () => Promise<void>): void {
    this.fetchUpdates = fetchUpdates
  }

  /**
   * Look for a run of a conversation that is about to be loaded, and follow it. Before loading, because a run that ends
   * in between would leave an incomplete text on the page.
   */
  async beforeLoad(threadId: string): Promise<void> {
    this.shown = threadId
    if (this.followed?.threadId === threadId && this.followed.isPolled) return // loaded by fetchUpdates
    const followed = this.start(threadId)
    const status = await this.find(threadId).catch(() => null) // loading will fail too, and report it
    if (this.followed !== followed) return
    if (status) this.onStatus(status)
    else this.followed = null
    if (status === 'active') void this.poll(followed, POLL_MS)
  }

  /** Follow the run of a conversation whose connection was cut. */
  follow(threadId: string, firstPause = 0): void {
    void this.poll(this.start(threadId), firstPause)
  }

  /** The run that is followed or interrupted, if any. */
  get runId(): string | undefined {
    return this.followed?.runId
  }

  /**
   * Look for the run of a turn whose connection was cut before the response came, and return its id if it has begun. The
   * conversation is followed in any case, because the service may not be reachable yet. `before` is the run that was there already.
   */
  async recover(threadId: string, before: string | undefined): Promise<string | null> {
    const followed = this.start(threadId)
    const status = await this.find(threadId).catch(() => null)
    void this.poll(followed, 0, true)
    return status === 'active' && followed.runId !== before ? followed.runId! : null
  }

  /**
   * Stop a run whose response the user has aborted. If that fails, the run is followed. Does nothing while the page is being
   * unloaded, because that is not the user's stop.
   */
  async abort(runId: string, threadId: string | null = null): Promise<void> {
    if (isUnloading || (await this.tryToStop(runId))) return
    const followed = this.start(threadId)
    this.showNotStopped(followed, runId)
    void this.poll(followed, POLL_MS)
  }

  /** Stop the followed run for the user, and update the chat with the text so far. */
  async stop(): Promise<void> {
    const { followed } = this
    if (!followed?.runId || followed.isStopping) return
    const { runId, threadId } = followed
    followed.isStopping = true
    const isStopped = await this.tryToStop(runId)
    followed.isStopping = false
    if (!isStopped) return this.showNotStopped(followed, runId)
    if (this.followed !== followed) return
    if (threadId === null) this.leave()
    else this.follow(threadId, POLL_MS) // by then its text is stored
  }

  /** Stop following, because the chat is removed, until another one is connected. */
  dispose(): void {
    this.leave()
    this.fetchUpdates = this.shown = null
  }

  /** Stop following: a new response begins. Returns the conversation with the run that was followed or interrupted, if any. */
  leave(): string | null {
    if (!this.followed) return null
    const { threadId } = this.followed
    this.followed = null
    this.onStatus(null)
    return threadId
  }

  /** Stop following if the chat shows another conversation. */
  show(threadId: string | null): void {
    this.shown = threadId
    if (this.followed?.threadId !== threadId) this.leave()
  }

  /** Retry the interrupted response, and follow the new one. */
  async retry(): Promise<void> {
    const { followed } = this
    const threadId = followed?.threadId
    if (!threadId) return
    try {
      const items = await this.post('items.list', { thread_id: threadId, order: 'desc', limit: NEWEST_ITEMS })
      const page: { data: { id: string; type: string }[] } = await items.json()
      const message = page.data.find(({ type }) => type === 'user_message')
      const response = await this.post('threads.retry_after_item', { thread_id: threadId, item_id: message?.id })
      void response.body?.cancel() // its text comes with the updates
      if (this.followed === followed) this.follow(threadId)
    } catch (cause) {
      console.error(RUN_MESSAGES.not_repeated, cause)
      if (this.followed === followed) this.onStatus('not_repeated')
    }
  }

  /** Follow nothing but what is started here, and not even that if the chat is removed or shows another conversation. */
  private start(threadId: string | null): Followed {
    this.leave()
    const followed = { threadId, isPolled: false }
    if (this.fetchUpdates && (this.shown ?? threadId) === threadId) this.followed = followed
    return followed
  }

  /** Stop a run, in several attempts. Returns whether it has ended. */
  private async tryToStop(runId: string): Promise<boolean> {
    for (let attempt = 1; ; attempt++) {
      try {
        const response = await call(this.session, 'DELETE', `/runs/${encodeURIComponent(runId)}`)
        if (response.ok || response.status === 404) return true // 404: it has ended
        throw await failure(response, 'The stop failed')
      } catch (cause) {
        const { status } = cause instanceof ServiceError ? cause : {}
        if (attempt === STOP_ATTEMPTS || (status !== undefined && status !== 429 && status !== 503)) {
          console.error(RUN_MESSAGES.not_stopped, cause)
          return false
        }
        await sleep(Math.max(2 ** (attempt - 1) * 1_000, retryAfter(cause)))
      }
    }
  }

  private showNotStopped(followed: Followed, runId: string): void {
    if (this.followed !== followed) return
    followed.runId = followed.notStopped = runId
    this.onStatus('not_stopped')
  }

  /** `isQuiet`: the page shows already that the service can't be reached. */
  private async poll(followed: Followed, firstPause: number, isQuiet = false): Promise<void> {
    const { threadId } = followed
    if (threadId === null) return
    followed.isPolled = true
    let pause = firstPause
    let nextPause = POLL_MS
    let failedPause = POLL_MS
    for (;;) {
      await sleep(pause)
      try {
        if (this.followed !== followed) return
        const status = await this.find(threadId)
        if (this.followed !== followed) return
        await this.fetchUpdates!()
        if (this.followed !== followed) return
        if (!status) return void this.leave()
        this.onStatus(status === 'active' && followed.notStopped === followed.runId ? 'not_stopped' : status)
        if (status === 'interrupted') {
          followed.isPolled = false
          return
        }
        pause = nextPause
        nextPause = Math.min(SLOWDOWN * nextPause, MAX_POLL_MS)
        failedPause = POLL_MS
        isQuiet = false
      } catch (cause) {
        if (this.followed !== followed) return
        const { status } = cause instanceof ServiceError ? cause : {}
        if (status === 404) await this.fetchUpdates!().catch(() => {}) // the conversation is gone, and so is the update
        if (this.followed !== followed) return
        if (status === 404 || status === 401) return void this.leave() // 401: also with a new secret, or there is none
        if (status !== 429 && !isQuiet) this.onStatus('unreachable')
        pause = Math.max(failedPause, retryAfter(cause))
        failedPause = Math.min(2 * failedPause, MAX_FAILED_POLL_MS)
      }
    }
  }

  /** The status of the conversation's run; `null` if it has none. */
  private async find(threadId: string): Promise<'active' | 'interrupted' | null> {
    const response = await call(this.session, 'GET', `/threads/${encodeURIComponent(threadId)}/run`)
    if (!response.ok) throw await failure(response, 'The run could not be looked up')
    const { data } = await response.json()
    if (this.followed?.threadId === threadId) this.followed.runId = data?.id
    return data?.status ?? null
  }

  private async post(type: string, params: object): Promise<Response> {
    const response = await call(this.session, 'POST', '', JSON.stringify({ type, params }))
    if (!response.ok) throw await failure(response, `${type} failed`)
    return response
  }
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds))
}

/** How long the service asks to wait after an error, in milliseconds. */
function retryAfter(cause: unknown): number {
  const seconds = (cause instanceof ServiceError && cause.retryAfter) || 0
  return Math.min(seconds * 1_000, MAX_RETRY_AFTER_MS)
}

async function failure(response: Response, message: string): Promise<ServiceError> {
  return responseError(response, await readJson(response), message, () => USER_MESSAGES.failed)
}

function call(session: Session, method: 'GET' | 'DELETE' | 'POST', path: string, body?: string): Promise<Response> {
  return withSecret(session, (secret) => {
    const headers = new Headers([['Authorization', `Bearer ${secret}`]])
    if (body) {
      headers.set('Content-Type', 'application/json')
      headers.set(...GOES_ON)
    }
    // keepalive: the user may close the page right after stopping.
    return fetch(`${service().apiUrl}/api/chatkit${path}`, { method, headers, body, keepalive: method === 'DELETE' })
  })
}
