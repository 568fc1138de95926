/** The contract's configuration as ChatKit's own options. Independent of React and Next.js. */

import type { ChatKitOptions, CustomApiConfig, ThemeOption } from '@openai/chatkit'
import type { ChatKitConfig } from './chatkit-config'
import { ServiceError, USER_MESSAGES, networkError, readJson, responseError } from './errors'
import type { Session } from './page-session'
import { service } from './service'

/** Callbacks for the calls of a self-hosted chat. */
export interface CallListeners {
  /** Called with the text of each message that the service has accepted. */
  onMessage?: (message: string) => void
  /** Called with the error of a failed call, and with `null` after a successful one. */
  onFailure?: (error: ServiceError | null) => void
}

/** ChatKit's `api` option: the backend, and how to authenticate with it. */
export function chatKitApi(session: Session, listeners: CallListeners = {}): ChatKitOptions['api'] {
  const { apiUrl, domainKey } = service()
  if (!domainKey) return { getClientSecret: (existing) => session.secret(existing) }
  return { url: `${apiUrl}/api/chatkit`, domainKey, fetch: chatFetch(session, listeners) }
}

/** The models and tools that users may choose from, and whether they can dictate: a part of ChatKit's option `composer`. */
export type Choices = Pick<NonNullable<ChatKitOptions['composer']>, 'models' | 'tools' | 'dictation'>

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

/** ChatKit's `composer` option: that of the page, with exactly the models and tools that the service lists. */
export function composerOption(own: ChatKitOptions['composer'], { dictation, ...lists }: Choices): ChatKitOptions['composer'] {
  return { ...(dictation && { dictation }), ...own, ...lists }
}

export function chatKitTheme(theme: ChatKitConfig['theme']): ThemeOption {
  const primary = theme?.primaryColor
  return { colorScheme: theme?.darkMode ? 'dark' : 'light', ...(primary && { color: { accent: { primary, level: 2 } } }) }
}

/** `fetch` with the page's secret. A call whose secret is rejected is repeated once with a new one. */
function chatFetch(
  session: Session,
  { onMessage, onFailure = () => {} }: CallListeners,
): NonNullable<CustomApiConfig['fetch']> {
  return async (input, init) => {
    const request = await readRequest(input, init)
    const reportNetworkError = (cause: unknown) => {
      if (!(cause instanceof Error && cause.name === 'AbortError')) onFailure(networkError(cause, request.threadId))
    }
    const send = async (secret: string) => {
      const headers = new Headers(init?.headers || (input instanceof Request ? input.headers : undefined))
      headers.set('Authorization', `Bearer ${secret}`)
      try {
        return await fetch(input instanceof Request ? input.clone() : input, { ...init, headers })
      } catch (cause) {
        reportNetworkError(cause)
        throw cause
      }
    }
    const secret = await session.secret()
    let response = await send(secret)
    if (await isSecretRejected(response)) {
      session.invalidate(secret)
      response = await send(await session.secret())
    }
    if (!response.ok) {
      const body = await readJson(response.clone())
      onFailure(responseError(response, body, 'The chat request failed', userMessageFor, request.threadId))
      return response
    }
    onFailure(null)
    if (request.message) onMessage?.(request.message)
    return isEventStream(response) ? watchStream(response, onFailure, reportNetworkError) : response
  }
}

/** The service's own messages are meant for users, except those of 5xx responses. */
function userMessageFor(status: number, code?: string, message?: string): string {
  if (status >= 500) return USER_MESSAGES.down
  if (status === 429) return USER_MESSAGES.busy
  if (status === 413) return USER_MESSAGES.tooLong
  return (code && message) || USER_MESSAGES.failed
}

function isEventStream(response: Response): boolean {
  return /^text\/event-stream\b/.test(response.headers.get('Content-Type') || '')
}

/** Pass `response` through, and report the error events in its stream and a broken connection. */
function watchStream(
  response: Response,
  onFailure: (error: ServiceError) => void,
  onDisconnect: (cause: unknown) => void,
): Response {
  const reader = response.body!.getReader()
  const decoder = new TextDecoder()
  let incompleteLine = ''
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await reader.read().catch((cause) => {
        onDisconnect(cause)
        throw cause
      })
      if (done) return controller.close()
      const lines = (incompleteLine + decoder.decode(value, { stream: true })).split('\n')
      incompleteLine = lines.pop()!
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

/** Whether the service rejected the secret as expired or unknown. */
async function isSecretRejected(response: Response): Promise<boolean> {
  if (response.status !== 401) return false
  const { code } = await response
    .clone()
    .json()
    .catch(() => ({}))
  return code === 'client_secret_expired' || code === 'client_secret_unknown'
}

/** Read the user's message, or the id of the conversation to load, from a request of ChatKit's protocol. */
async function readRequest(input: RequestInfo | URL, init?: RequestInit): Promise<{ message?: string; threadId?: string }> {
  const body = typeof init?.body === 'string' ? init.body : input instanceof Request ? await input.clone().text() : ''
  try {
    const { type, params } = JSON.parse(body)
    if (type === 'threads.create' || type === 'threads.add_user_message') return { message: messageText(params.input.content) }
    return type === 'threads.get_by_id' ? { threadId: params.thread_id } : {}
  } catch {
    return {} // not a protocol request, a file for example
  }
}

/** The text of a message's parts. */
export function messageText(content: readonly { text: string }[]): string {
  return content.map((part) => part.text).join('')
}
