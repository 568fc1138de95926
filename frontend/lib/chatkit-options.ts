/** The contract's configuration as ChatKit's own options. Independent of React and Next.js. */

import type { ChatKitOptions, CustomApiConfig, ThemeOption } from '@openai/chatkit'
import { GOES_ON, RUN_HEADER, type RunFollower } from './active-run'
import type { ChatKitConfig } from './chatkit-config'
import { ServiceError, USER_MESSAGES, networkError, readJson, responseError } from './errors'
import { type Session, withSecret } from './page-session'
import { service } from './service'

const SILENCE_MS = 30_000 // the service sends a comment every 10 s, so the connection is lost

/** Callbacks for the calls of a self-hosted chat. */
export interface CallListeners {
  /** Called with the text of each message that the service has accepted. */
  onMessage?: (message: string) => void
  /** Called with the error of a failed call, and with `null` after a successful one. */
  onFailure?: (error: ServiceError | null) => void
  /** Follows responses that go on without a reader. Without it, they stop when the page disconnects. */
  runs?: RunFollower
}

/** ChatKit's `api` option: the backend, and how to authenticate with it. */
export function chatKitApi(session: Session, listeners: CallListeners = {}): ChatKitOptions['api'] {
  const { apiUrl, domainKey } = service()
  if (!domainKey) return { getClientSecret: (existing) => session.secret(existing) }
  return {
    url: `${apiUrl}/api/chatkit`,
    domainKey,
    fetch: chatFetch(session, listeners),
    uploadStrategy: { type: 'two_phase' },
  }
}

/** What users may choose from and attach, and whether they can dictate: a part of ChatKit's option `composer`. */
export type Choices = Pick<NonNullable<ChatKitOptions['composer']>, 'models' | 'tools' | 'attachments' | 'dictation'>

/** What the service lets users choose from; `null` if there is nothing, or it could not be loaded, and for a hosted chat. */
export async function loadChoices(): Promise<Choices | null> {
  const { apiUrl, domainKey } = service()
  if (!domainKey) return null
  try {
    const response = await fetch(`${apiUrl}/api/chatkit/composer`)
    const { data } = await response.json()
    return Object.keys(data).length > 0 ? data : null
  } catch (cause) {
    console.error('The models and tools to choose from could not be loaded:', cause)
    return null
  }
}

/** ChatKit's `composer` option: that of the page, with exactly the models, tools and attachments that the service lists. */
export function composerOption(own: ChatKitOptions['composer'], { dictation, ...lists }: Choices): ChatKitOptions['composer'] {
  return { ...(dictation && { dictation }), ...own, ...lists }
}

export function chatKitTheme(theme: ChatKitConfig['theme']): ThemeOption {
  const primary = theme?.primaryColor
  return { colorScheme: theme?.darkMode ? 'dark' : 'light', ...(primary && { color: { accent: { primary, level: 2 } } }) }
}

/**
 * `fetch` with the page's secret. A call whose secret is rejected is repeated once with a new one. A call to another server than
 * the service, such as the upload of a file to a store of an operator's own, does not get the secret.
 *
 * With `runs`, a response goes on when this page disconnects, and only an abort of the call or of its body stops it: that is
 * what ChatKit does when the user stops a response.
 */
function chatFetch(
  session: Session,
  { onMessage, onFailure = () => {}, runs }: CallListeners,
): NonNullable<CustomApiConfig['fetch']> {
  const serviceOrigin = originOf(service().apiUrl)
  return async (input, init) => {
    if (originOf(input) !== serviceOrigin) return fetch(input, init)
    const request = await readRequest(input, init)
    const isFollowed = runs !== undefined && request.isTurn === true
    const signal = init?.signal ?? (input instanceof Request ? input.signal : null)
    const reportNetworkError = (cause: unknown) => {
      if (!(cause instanceof Error && cause.name === 'AbortError')) onFailure(networkError(cause, request.threadId))
    }
    let isCut = false
    const send = async (secret: string) => {
      const headers = new Headers(init?.headers || (input instanceof Request ? input.headers : undefined))
      headers.set('Authorization', `Bearer ${secret}`)
      if (isFollowed) headers.set(...GOES_ON)
      try {
        // Without the signal, because a run can be stopped only when the response has told its id.
        const options = { ...init, headers, ...(isFollowed && { signal: null }) }
        return await fetch(input instanceof Request ? input.clone() : input, options)
      } catch (cause) {
        isCut = isFollowed
        reportNetworkError(cause)
        throw cause
      }
    }
    if (request.threadId) await runs?.beforeLoad(request.threadId)
    const before = runs?.runId
    const left = isFollowed && !request.isAction && runs.leave() // an action is handled beside the run
    const goOn = () => {
      if (left && !isCut) runs!.follow(left)
    }
    const pending = withSecret(session, send).catch(async (cause) => {
      const runId = isCut && request.turnsThread && (await runs!.recover(request.turnsThread, before))
      if (!runId) throw cause
      return new Response('', { headers: { 'Content-Type': 'text/event-stream', [RUN_HEADER]: runId } }) // like one that is cut later
    })
    const response = await (
      isFollowed ? untilAborted(pending, signal, (late) => abandon(runs, late, request.turnsThread)) : pending
    ).catch((cause) => {
      goOn()
      throw cause
    })
    if (!response.ok) {
      goOn()
      const body = await readJson(response.clone())
      onFailure(responseError(response, body, 'The chat request failed', userMessageFor, request.threadId))
      return response
    }
    onFailure(null)
    if (request.message) onMessage?.(request.message)
    if (!isEventStream(response)) return response
    const runId = isFollowed && response.headers.get(RUN_HEADER)
    const run = runId
      ? { signal, threadId: request.turnsThread, stop: runs.abort.bind(runs, runId), onCut: runs.follow.bind(runs) }
      : null
    return watchStream(response, onFailure, reportNetworkError, run)
  }
}

function originOf(input: RequestInfo | URL): string {
  return new URL(input instanceof Request ? input.url : input, globalThis.location?.href).origin
}

/** Wait for `pending`, or reject as soon as `signal` is aborted; `onLate` then gets the response that comes nevertheless. */
function untilAborted(
  pending: Promise<Response>,
  signal: AbortSignal | null,
  onLate: (response: Response) => void,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(aborted())
      pending.then(onLate, () => {}) // an error has been reported
    }
    if (signal?.aborted) return abort()
    signal?.addEventListener('abort', abort)
    const settled = () => signal?.removeEventListener('abort', abort)
    pending.then(resolve, reject).finally(settled)
  })
}

/** Stop the run of a response that is no longer awaited. */
function abandon(runs: RunFollower, response: Response, threadId?: string): void {
  const runId = response.headers.get(RUN_HEADER)
  if (runId) void runs.abort(runId, threadId)
  void response.body?.cancel()
}

function aborted(): DOMException {
  return new DOMException('The request was aborted.', 'AbortError')
}

/** The service's own messages are meant for users, except those of 5xx responses. */
function userMessageFor(status: number, code?: string, message?: string): string {
  if (status >= 500) return USER_MESSAGES.down
  if (code === 'request_refused' && message) return message
  if (status === 429) return USER_MESSAGES.busy
  if (status === 413) return USER_MESSAGES.tooLong
  return (code && message) || USER_MESSAGES.failed
}

function isEventStream(response: Response): boolean {
  return /^text\/event-stream\b/.test(response.headers.get('Content-Type') || '')
}

/** How a stream can end before its run does. */
interface StreamedRun {
  signal: AbortSignal | null
  /** `undefined` until the stream has told the id of a new conversation. */
  threadId?: string
  stop: (threadId?: string) => void
  onCut: (threadId: string) => void
}

/**
 * Pass `response` through, and report the error events in its stream and a broken connection.
 *
 * If the stream has a `run` in a known conversation, it ends without an error when its connection breaks, and the run is followed.
 */
function watchStream(
  response: Response,
  onFailure: (error: ServiceError) => void,
  onDisconnect: (cause: unknown) => void,
  run: StreamedRun | null,
): Response {
  const reader = response.body!.getReader()
  const decoder = new TextDecoder()
  let incompleteLine = ''
  let threadId = run?.threadId
  let stop = () => {}
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      if (!run) return
      const abort = () => {
        stop()
        controller.error(aborted())
        void reader.cancel().catch(() => {})
      }
      stop = () => {
        run.signal?.removeEventListener('abort', abort)
        stop = () => {}
        run.stop(threadId)
      }
      run.signal?.addEventListener('abort', abort)
      if (run.signal?.aborted) abort()
    },
    async pull(controller) {
      const { done, value } = await readInTime(reader).catch((cause) => {
        void reader.cancel().catch(() => {})
        if (!run || threadId === undefined) {
          onDisconnect(cause)
          throw cause
        }
        run.onCut(threadId)
        return { done: true, value: undefined }
      })
      if (done || !value) {
        stop = () => {}
        return controller.close()
      }
      const lines = (incompleteLine + decoder.decode(value, { stream: true })).split('\n')
      incompleteLine = lines.pop()!
      for (const line of lines) {
        const error = errorIn(line)
        if (error) onFailure(error)
        if (run && threadId === undefined) threadId = createdThreadIn(line)
      }
      controller.enqueue(value)
    },
    cancel(reason) {
      stop()
      return reader.cancel(reason)
    },
  })
  return new Response(body, response)
}

/** The next part of an event stream. Rejects after a silence: a connection may be lost without an error. */
function readInTime(reader: ReadableStreamDefaultReader<Uint8Array>): ReturnType<typeof reader.read> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new TypeError('Network error: no data for 30 s')), SILENCE_MS)
    const received = () => clearTimeout(timer)
    reader.read().then(resolve, reject).finally(received)
  })
}

/** The id of the conversation in the line of an event stream that says that it was created. */
function createdThreadIn(line: string): string | undefined {
  if (!line.startsWith('data: {"type":"thread.created"')) return undefined
  return JSON.parse(line.slice('data: '.length)).thread.id
}

/** The error event in a line of an event stream, if any. Its message is meant for users. */
function errorIn(line: string): ServiceError | null {
  if (!line.startsWith('data: {"type":"error"')) return null
  try {
    const { code, message } = JSON.parse(line.slice('data: '.length))
    return new ServiceError(message || `The response failed: ${code}`, message || USER_MESSAGES.failed, { code })
  } catch {
    return null
  }
}

interface ProtocolRequest {
  /** The user's message. */
  message?: string
  /** The conversation to load. */
  threadId?: string
  /** Whether the response is a stream. */
  isTurn?: boolean
  /** Whether the turn is an action of a widget. */
  isAction?: boolean
  /** The conversation that the turn is in, if it exists already. */
  turnsThread?: string
}

const TURNS = [
  'threads.create',
  'threads.add_user_message',
  'threads.add_client_tool_output',
  'threads.add_structured_input',
  'threads.retry_after_item',
  'threads.custom_action',
]

async function readRequest(input: RequestInfo | URL, init?: RequestInit): Promise<ProtocolRequest> {
  const body = typeof init?.body === 'string' ? init.body : input instanceof Request ? await input.clone().text() : ''
  try {
    const { type, params } = JSON.parse(body)
    if (type === 'threads.get_by_id') return { threadId: params.thread_id }
    const turn = { isTurn: TURNS.includes(type), isAction: type === 'threads.custom_action', turnsThread: params.thread_id }
    if (type !== 'threads.create' && type !== 'threads.add_user_message') return turn
    return { message: messageText(params.input.content), ...turn }
  } catch {
    return {} // not a protocol request, a file for example
  }
}

/** The text of a message's parts. */
export function messageText(content: readonly { text: string }[]): string {
  return content.map((part) => part.text).join('')
}
