/**
 * Responses that go on without a reader, which the service calls active runs: stopping one, and following one after a reload
 * or a cut connection. Independent of React and Next.js.
 */

import { USER_MESSAGES } from './errors'
import { type Session, withSecret } from './page-session'
import { service } from './service'

/** The response header with the id of the run. */
export const RUN_HEADER = 'ChatKit-Run'
/** The request header that lets the response go on when this page disconnects. */
export const GOES_ON = ['ChatKit-On-Disconnect', 'continue'] as const

const POLL_MS = 1_000
const MAX_POLL_MS = 10_000 // while the service can't be reached
const NEWEST_ITEMS = 100

/** What to show about the run of the conversation: it is being followed, it can be retried, or the service can't be reached. */
export type RunStatus = 'active' | 'interrupted' | 'unreachable'

export const RUN_MESSAGES: Record<RunStatus, string> = {
  active: 'A response is being written…',
  interrupted: 'The response was interrupted.',
  unreachable: USER_MESSAGES.network,
}

interface Followed {
  threadId: string
  isPolled: boolean
}

let isUnloading = false
if (typeof window !== 'undefined') {
  window.addEventListener('pagehide', () => (isUnloading = true))
  window.addEventListener('pageshow', () => (isUnloading = false))
}

/** Stop a run for the user. Does nothing while the page is being unloaded, because that is not the user's stop. */
export async function stopRun(session: Session, runId: string): Promise<void> {
  if (isUnloading) return
  try {
    const response = await call(session, 'DELETE', `/runs/${encodeURIComponent(runId)}`)
    if (!response.ok && response.status !== 404) console.error('The response could not be stopped:', response.status) // 404: it has ended
  } catch (cause) {
    console.error('The response could not be stopped:', cause)
  }
}

/** Follows the active run of the conversation that a chat shows. */
export class RunFollower {
  private fetchUpdates: () => Promise<void> = async () => {}
  private followed: Followed | null = null

  /** `onStatus` is called with the status to show, `null` for none. It may be called with the same one again. */
  constructor(
    private readonly session: Session,
    private readonly onStatus: (status: RunStatus | null) => void,
  ) {}

  /** Set the function that updates the chat: that of ChatKit's component. */
  connect(fetchUpdates: () => Promise<void>): void {
    this.fetchUpdates = fetchUpdates
  }

  /**
   * Look for a run of a conversation that is about to be loaded, and follow it. Before loading, because a run that ends
   * in between would leave an incomplete text on the page.
   */
  async beforeLoad(threadId: string): Promise<void> {
    if (this.followed?.threadId === threadId && this.followed.isPolled) return // loaded by fetchUpdates
    const followed = this.start(threadId)
    const status = await this.find(threadId).catch(() => null) // loading will fail too, and report it
    if (this.followed !== followed) return
    if (status) this.onStatus(status)
    if (status === 'active') void this.poll(followed, POLL_MS)
  }

  /** Follow the run of a conversation whose connection was cut. */
  follow(threadId: string): void {
    void this.poll(this.start(threadId), 0)
  }

  /** Stop following: a new response begins, or the chat is removed. */
  leave(): void {
    if (!this.followed) return
    this.followed = null
    this.onStatus(null)
  }

  /** Stop following if the chat shows another conversation. */
  show(threadId: string | null): void {
    if (this.followed?.threadId !== threadId) this.leave()
  }

  /** Retry the interrupted response, and follow the new one. */
  async retry(): Promise<void> {
    const threadId = this.followed?.threadId
    if (!threadId) return
    try {
      const items = await this.post('items.list', { thread_id: threadId, order: 'desc', limit: NEWEST_ITEMS })
      const page: { data: { id: string; type: string }[] } = await items.json()
      const message = page.data.find(({ type }) => type === 'user_message')
      const response = await this.post('threads.retry_after_item', { thread_id: threadId, item_id: message?.id })
      void response.body?.cancel() // its text comes with the updates
      this.follow(threadId)
    } catch (cause) {
      console.error('The response could not be retried:', cause)
    }
  }

  private start(threadId: string): Followed {
    this.leave()
    return (this.followed = { threadId, isPolled: false })
  }

  private async poll(followed: Followed, firstPause: number): Promise<void> {
    followed.isPolled = true
    let pause = firstPause
    let failedPause = POLL_MS
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, pause))
      try {
        if (this.followed !== followed) return
        const status = await this.find(followed.threadId)
        if (this.followed !== followed) return
        await this.fetchUpdates()
        if (this.followed !== followed) return
        this.onStatus(status)
        if (status !== 'active') {
          followed.isPolled = false
          return
        }
        pause = failedPause = POLL_MS
      } catch {
        if (this.followed !== followed) return
        this.onStatus('unreachable')
        pause = failedPause
        failedPause = Math.min(2 * failedPause, MAX_POLL_MS)
      }
    }
  }

  /** The status of the conversation's run; `null` if it has none, or no longer exists. */
  private async find(threadId: string): Promise<'active' | 'interrupted' | null> {
    const response = await call(this.session, 'GET', `/threads/${encodeURIComponent(threadId)}/run`)
    if (response.status === 404) return null
    if (!response.ok) throw new Error(`The run could not be looked up: ${response.status}`)
    const { data } = await response.json()
    return data?.status ?? null
  }

  private async post(type: string, params: object): Promise<Response> {
    const response = await call(this.session, 'POST', '', JSON.stringify({ type, params }))
    if (!response.ok) throw new Error(`${type} failed with status ${response.status}`)
    return response
  }
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
