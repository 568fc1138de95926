/** Errors of the service, for developers and for users. Independent of React and Next.js. */

export const USER_MESSAGES = {
  configuration: 'Unable to start chat. Please check configuration.',
  network: 'Network connection lost. Please check your internet.',
  down: 'Service temporarily down. Please try again.',
  busy: 'Too many requests. Please try again in a moment.',
  again: 'Unable to start chat. Please try again.',
  signIn: 'Please sign in, and try again.',
  tooLong: 'This message is too long. Please shorten it.',
  failed: 'Something went wrong. Please try again.',
} as const

type Details = Partial<Pick<ServiceError, 'status' | 'code' | 'retryAfter' | 'threadId'>>

/** A failed call to the service. `message` is for developers, `userMessage` for the user. */
export class ServiceError extends Error {
  readonly userMessage: string
  /** The HTTP status, if there was a response. */
  readonly status?: number
  /** The stable error code of the service. */
  readonly code?: string
  /** The `Retry-After` header, in seconds. */
  readonly retryAfter?: number
  /** The conversation that failed to load, if the call was to load one. */
  readonly threadId?: string

  constructor(message: string, userMessage: string, details: Details = {}) {
    super(message)
    this.name = 'ServiceError'
    this.userMessage = userMessage
    this.status = details.status
    this.code = details.code
    this.retryAfter = details.retryAfter
    this.threadId = details.threadId
  }
}

/** The body of a response, not yet validated. */
export interface Envelope {
  message?: unknown
  code?: unknown
  data?: { client_secret?: unknown; session_id?: unknown; expires_in?: unknown } | null
}

export async function readJson(response: Response): Promise<Envelope | null> {
  try {
    const body: unknown = await response.json()
    return body !== null && typeof body === 'object' ? body : null
  } catch {
    return null
  }
}

/** The error for a response whose status is not 2xx. `fallback` begins its message if `body` has none. */
export function responseError(
  response: Response,
  body: Envelope | null,
  fallback: string,
  userMessageFor: (status: number, code?: string, message?: string) => string,
  threadId?: string,
): ServiceError {
  const { status } = response
  const message = typeof body?.message === 'string' ? body.message : undefined
  const code = typeof body?.code === 'string' ? body.code : undefined
  const seconds = Number(response.headers.get('Retry-After') || NaN)
  const retryAfter = Number.isFinite(seconds) ? seconds : undefined
  const technical = message ?? `${fallback}: ${response.statusText || status}`
  return new ServiceError(technical, userMessageFor(status, code, message), { status, code, retryAfter, threadId })
}

/** The error for a call without a response, or with an incomplete one. */
export function networkError(cause: unknown, threadId?: string): ServiceError {
  return new ServiceError(cause instanceof Error ? cause.message : 'Network error', USER_MESSAGES.network, { threadId })
}

/** The message to show to the user. Never `error.message`, which is for developers. */
export function userMessage(error: Error, fallback: string = USER_MESSAGES.failed): string {
  if ('userMessage' in error && typeof error.userMessage === 'string') return error.userMessage
  return isNetworkFailure(error) ? USER_MESSAGES.network : fallback
}

/** Match the messages of Chromium, Firefox and WebKit: calls from OpenAI's frame report nothing else. */
function isNetworkFailure({ message }: Error): boolean {
  return /failed to fetch|load failed|network ?error|error in input stream|connection was lost/i.test(message)
}

/** An error whose `message` can be shown to the user. `cause` is the original error. */
export class UserFacingError extends Error {
  readonly userMessage: string

  constructor(
    readonly cause: Error,
    fallback?: string,
  ) {
    super(userMessage(cause, fallback))
    this.name = 'UserFacingError'
    this.userMessage = this.message
  }
}
