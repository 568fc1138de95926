/** The contract's configuration in ChatKit's own terms. Needs neither React nor Next.js. */

import type { ChatKitOptions, CustomApiConfig, ThemeOption } from '@openai/chatkit'
import type { ChatKitConfig } from './chatkit-config'
import { ServiceError, USER_MESSAGES, networkError, readJson, refusal } from './errors'
import type { Session } from './page-session'
import { service } from './service'

/** What is told about the calls of a self-hosted chat. */
export interface CallListeners {
  /** Called with what the user has sent. */
  onMessage?: (message: string) => void
  /** Called with the error of a call that failed, and with `null` when a later one has succeeded. */
  onFailure?: (error: ServiceError | null) => void
}

/** Where ChatKit sends what the user says, and how it gets its secrets. */
export function chatKitApi(session: Session, listeners: CallListeners = {}): ChatKitOptions['api'] {
  const { apiUrl, domainKey } = service()
  if (!domainKey) return { getClientSecret: (existing) => session.secret(existing) }
  return { url: `${apiUrl}/api/chatkit`, domainKey, fetch: chatFetch(session, listeners) }
}

export function chatKitTheme(theme: ChatKitConfig['theme']): ThemeOption {
  const primary = theme?.primaryColor
  return { colorScheme: theme?.darkMode ? 'dark' : 'light', ...(primary && { color: { accent: { primary, level: 2 } } }) }
}

/** `fetch` with the page's secret. A call whose secret turns out to be gone is repeated, once, with a new one. */
function chatFetch(
  session: Session,
  { onMessage, onFailure = () => {} }: CallListeners,
): NonNullable<CustomApiConfig['fetch']> {
  return async (input, init) => {
    const request = await readRequest(input, init)
    const fail = (cause: unknown) => {
      if (!(cause instanceof Error && cause.name === 'AbortError')) onFailure(networkError(cause, request.loads))
    }
    const send = async (secret: string) => {
      const headers = new Headers(init?.headers || (input instanceof Request ? input.headers : undefined))
      headers.set('Authorization', `Bearer ${secret}`)
      try {
        return await fetch(input instanceof Request ? input.clone() : input, { ...init, headers })
      } catch (cause) {
        fail(cause)
        throw cause
      }
    }
    const secret = await session.secret()
    let response = await send(secret)
    if (await isGone(response)) {
      session.drop(secret)
      response = await send(await session.secret())
    }
    if (!response.ok) {
      onFailure(refusal(response, await readJson(response.clone()), 'The chat request failed', sentenceFor, request.loads))
      return response
    }
    onFailure(null)
    if (request.message) onMessage?.(request.message)
    return isEventStream(response) ? watchStream(response, onFailure, fail) : response
  }
}

/** The service's messages are made for people, but for those of a server that is down. */
function sentenceFor(status: number, code?: string, message?: string): string {
  if (status >= 500) return USER_MESSAGES.down
  if (status === 429) return USER_MESSAGES.busy
  if (status === 413) return USER_MESSAGES.tooLong
  return (code && message) || USER_MESSAGES.failed
}

function isEventStream(response: Response): boolean {
  return /^text\/event-stream\b/.test(response.headers.get('Content-Type') || '')
}

/** `response` with its stream, in which the service may send an error, and which may break off. */
function watchStream(
  response: Response,
  onFailure: (error: ServiceError) => void,
  onBreak: (cause: unknown) => void,
): Response {
  const reader = response.body!.getReader()
  const decoder = new TextDecoder()
  let rest = ''
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await reader.read().catch((cause) => {
        onBreak(cause)
        throw cause
      })
      if (done) return controller.close()
      const lines = (rest + decoder.decode(value, { stream: true })).split('\n')
      rest = lines.pop()!
      for (const line of lines) {
        const error = errorIn(line)
        if (error) onFailure(error)
      }
      controller.enqueue(value)
    },
    cancel: (reason) => reader.cancel(reason),
  })
  return new Response(body, response)
}

/** The error that a line of an event stream brings, if any. Its message, where it has one, is made for people. */
function errorIn(line: string): ServiceError | null {
  if (!line.startsWith('data: {"type":"error"')) return null
  try {
    const { code, message } = JSON.parse(line.slice('data: '.length))
    return new ServiceError(message || `The answer failed: ${code}`, message || USER_MESSAGES.failed, { code })
  } catch {
    return null
  }
}

/** Whether the service says that a secret has run out, or that it has none such. */
async function isGone(response: Response): Promise<boolean> {
  if (response.status !== 401) return false
  const { code } = await response
    .clone()
    .json()
    .catch(() => ({}))
  return code === 'client_secret_expired' || code === 'client_secret_unknown'
}

/** What a request of ChatKit's protocol is about: the text that its user sends, or the conversation that it loads. */
async function readRequest(input: RequestInfo | URL, init?: RequestInit): Promise<{ message?: string; loads?: string }> {
  const body = typeof init?.body === 'string' ? init.body : input instanceof Request ? await input.clone().text() : ''
  try {
    const { type, params } = JSON.parse(body)
    if (type === 'threads.create' || type === 'threads.add_user_message') return { message: messageText(params.input.content) }
    return type === 'threads.get_by_id' ? { loads: params.thread_id } : {}
  } catch {
    return {} // no request of the protocol: a file, say
  }
}

/** What the parts of a message say, as one text. */
export function messageText(content: readonly { text: string }[]): string {
  return content.map((part) => part.text).join('')
}
