/**
 * The contract's configuration of ChatKit, and its one `getClientSecret`. Needs neither React nor Next.js.
 *
 * A session lives at most ten minutes. ChatKit calls `getClientSecret(existing)` when it wants to go on with a secret, so a
 * secret that is alive is returned as it is, and one that has run out is replaced.
 */

export interface ChatKitConfig {
  api: {
    /** ChatKit itself says `null` where the contract says nothing. */
    getClientSecret: (existing?: string | null) => Promise<string>
  }
  theme?: {
    primaryColor?: string
    darkMode?: boolean
  }
  /** Called with what the user has sent. */
  onMessage?: (message: string) => void
  onError?: (error: Error) => void
}

/** A signed-in user's token for `Authorization`, or a way to get the one that is valid now; nothing when nobody is signed in. */
export type TokenSource = string | null | undefined | (() => string | null | undefined | Promise<string | null | undefined>)

/** Why there is no session. `message` is for developers, `userMessage` for the person in front of the page. */
export class SessionError extends Error {
  readonly userMessage: string
  /** The answer's HTTP status; absent when there was no answer. */
  readonly status?: number
  /** The service's stable word for what went wrong. */
  readonly code?: string
  /** Seconds until it makes sense to try again. */
  readonly retryAfter?: number

  constructor(message: string, userMessage: string, more: { status?: number; code?: string; retryAfter?: number } = {}) {
    super(message)
    this.name = 'SessionError'
    this.userMessage = userMessage
    this.status = more.status
    this.code = more.code
    this.retryAfter = more.retryAfter
  }
}

export const USER_MESSAGES = {
  configuration: 'Unable to start chat. Please check configuration.',
  network: 'Network connection lost. Please check your internet.',
  down: 'Service temporarily down. Please try again.',
  busy: 'Too many requests. Please try again in a moment.',
  again: 'Unable to start chat. Please try again.',
} as const

const API_URL = process.env.NEXT_PUBLIC_API_URL || 'http://localhost:8000'
const CALL_LIMIT_MS = 15_000 // the service gives its own upstream ten seconds
const LONGEST_LIFE_SECONDS = 600
const MARGIN_MS = 15_000 // a message that is sent with a secret should arrive while it is alive

/**
 * The secrets that this page was issued, and when each has run out: by the page's own monotonic clock, which a wrong time of
 * day can't mislead, and by the time of day, because the monotonic one may stand still while a laptop sleeps.
 */
const runsOutAt = new Map<string, { monotonic: number; wall: number }>()
let underWay: Promise<string> | null = null
let tokenSource: TokenSource

/** Say who is signed in. Another user gets sessions of their own. */
export function setAuthToken(source: TokenSource): void {
  tokenSource = source
  runsOutAt.clear()
  underWay = null
}

/**
 * A secret to use ChatKit with.
 *
 * `existing` is returned, with no call, as long as it is alive, or if this page was not the one to be issued it. Otherwise the
 * service is asked for a new session; callers at the same time share one call.
 *
 * Throws a `SessionError`, or what `fetch` has thrown when the network fails.
 */
export async function getClientSecret(existing?: string | null): Promise<string> {
  if (existing && !hasRunOut(existing)) {
    console.log('Reusing existing ChatKit client secret')
    return existing
  }
  if (!underWay) {
    const call = createSession().finally(() => {
      if (underWay === call) underWay = null
    })
    underWay = call
  }
  return underWay
}

export const chatKitConfig: ChatKitConfig = {
  api: { getClientSecret },
  theme: { primaryColor: '#0070f3', darkMode: false },
}

function hasRunOut(secret: string): boolean {
  const end = runsOutAt.get(secret)
  return end !== undefined && (performance.now() >= end.monotonic || Date.now() >= end.wall)
}

async function createSession(): Promise<string> {
  console.log('Creating new ChatKit session')
  try {
    const asked = { monotonic: performance.now(), wall: Date.now() }
    const response = await call()
    const body = await readJson(response)
    if (!response.ok) throw refusal(response, body)
    const data = body?.data
    const secret = data?.client_secret
    if (typeof secret !== 'string' || !secret) {
      throw new SessionError(body ? 'No client secret in response' : 'Invalid response from server', USER_MESSAGES.again, {
        status: response.status,
      })
    }
    remember(secret, asked, data?.expires_in)
    console.log('Got ChatKit session:', data?.session_id)
    return secret
  } catch (error) {
    console.error('Error getting ChatKit session:', error)
    throw error
  }
}

/** Counted from before the call, so that the time it took is not given twice; and a margin earlier, but not before half its life. */
function remember(secret: string, asked: { monotonic: number; wall: number }, expiresIn: unknown): void {
  const seconds = typeof expiresIn === 'number' && expiresIn > 0 ? Math.min(expiresIn, LONGEST_LIFE_SECONDS) : LONGEST_LIFE_SECONDS
  const life = seconds * 1000
  const useful = life - Math.min(MARGIN_MS, life / 2)
  const forgotten = performance.now() - LONGEST_LIFE_SECONDS * 1000
  runsOutAt.forEach((end, known) => {
    if (end.monotonic < forgotten) runsOutAt.delete(known)
  })
  runsOutAt.set(secret, { monotonic: asked.monotonic + useful, wall: asked.wall + useful })
}

async function call(): Promise<Response> {
  const headers: Record<string, string> = { 'Content-Type': 'application/json' }
  const token = typeof tokenSource === 'function' ? await tokenSource() : tokenSource
  if (token) headers.Authorization = `Bearer ${token}`
  const controller = new AbortController()
  const timer = setTimeout(() => controller.abort(), CALL_LIMIT_MS)
  try {
    return await fetch(`${API_URL}/api/chatkit/sessions`, {
      method: 'POST',
      headers,
      credentials: 'include', // the visitor's cookie, which keeps a visitor the same person
      signal: controller.signal,
    })
  } catch (error) {
    if (controller.signal.aborted) throw new SessionError('The session request took too long', USER_MESSAGES.down)
    throw new SessionError(error instanceof Error ? error.message : 'Network error', USER_MESSAGES.network)
  } finally {
    clearTimeout(timer)
  }
}

/** What the service may have sent; nothing of it is believed before it is looked at. */
interface Envelope {
  message?: unknown
  code?: unknown
  data?: { client_secret?: unknown; session_id?: unknown; expires_in?: unknown } | null
}

async function readJson(response: Response): Promise<Envelope | null> {
  try {
    const body: unknown = await response.json()
    return body !== null && typeof body === 'object' ? body : null
  } catch {
    return null
  }
}

function refusal(response: Response, body: Envelope | null): SessionError {
  const message = typeof body?.message === 'string' ? body.message : `Session creation failed: ${response.statusText || response.status}`
  const seconds = Number(response.headers.get('Retry-After') || NaN)
  return new SessionError(message, userMessageFor(response.status), {
    status: response.status,
    code: typeof body?.code === 'string' ? body.code : undefined,
    retryAfter: Number.isFinite(seconds) ? seconds : undefined,
  })
}

function userMessageFor(status: number): string {
  if (status === 429) return USER_MESSAGES.busy
  if (status > 500) return USER_MESSAGES.down
  return USER_MESSAGES.configuration
}
