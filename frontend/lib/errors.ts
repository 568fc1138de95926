/** What a failure of the service is to a program, and to the person in front of the page. Needs neither React nor Next.js. */

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

/** A call to the service that failed. `message` is for developers, `userMessage` for the person in front of the page. */
export class ServiceError extends Error {
  readonly userMessage: string
  /** The response's HTTP status; absent when there was no response. */
  readonly status?: number
  /** The service's stable word for what went wrong. */
  readonly code?: string
  /** Seconds until it makes sense to try again. */
  readonly retryAfter?: number
  /** The conversation that could not be loaded, if that is what failed. */
  readonly threadId?: string

  constructor(message: string, userMessage: string, more: Details = {}) {
    super(message)
    this.name = 'ServiceError'
    this.userMessage = userMessage
    this.status = more.status
    this.code = more.code
    this.retryAfter = more.retryAfter
    this.threadId = more.threadId
  }
}

/** What the service may have sent; nothing of it is believed before it is looked at. */
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

/** The error of a response that is not OK. `sentence` chooses what the user is told. */
export function refusal(
  response: Response,
  body: Envelope | null,
  what: string,
  sentence: (status: number, code?: string, message?: string) => string,
  threadId?: string,
): ServiceError {
  const { status } = response
  const message = typeof body?.message === 'string' ? body.message : undefined
  const code = typeof body?.code === 'string' ? body.code : undefined
  const seconds = Number(response.headers.get('Retry-After') || NaN)
  const retryAfter = Number.isFinite(seconds) ? seconds : undefined
  const technical = message ?? `${what}: ${response.statusText || status}`
  return new ServiceError(technical, sentence(status, code, message), { status, code, retryAfter, threadId })
}

/** The error of a call that got no response, or only a part of one. */
export function networkError(cause: unknown, threadId?: string): ServiceError {
  return new ServiceError(cause instanceof Error ? cause.message : 'Network error', USER_MESSAGES.network, { threadId })
}

/** The sentence about `error` for the person in front of the page. Never `error.message`, which is for developers. */
export function userMessage(error: Error, otherwise: string = USER_MESSAGES.failed): string {
  if ('userMessage' in error && typeof error.userMessage === 'string') return error.userMessage
  return isNetworkFailure(error) ? USER_MESSAGES.network : otherwise
}

/** By the words of Chromium, Firefox and WebKit: there is nothing else to go by when OpenAI's frame makes the call. */
function isNetworkFailure({ message }: Error): boolean {
  return /failed to fetch|load failed|network ?error|error in input stream|connection was lost/i.test(message)
}

/** An error in a sentence for the person in front of the page. `cause` is the error itself. */
export class UserFacingError extends Error {
  readonly userMessage: string

  constructor(
    readonly cause: Error,
    otherwise?: string,
  ) {
    super(userMessage(cause, otherwise))
    this.name = 'UserFacingError'
    this.userMessage = this.message
  }
}
