/**
 * The contract's ChatKit configuration and `getClientSecret`. Independent of React and Next.js.
 *
 * A session lives at most ten minutes. ChatKit calls `getClientSecret(existing)` before it reuses a secret: a valid secret is
 * returned unchanged, an expired one is replaced.
 */

import { ServiceError, USER_MESSAGES, networkError, readJson, responseError } from './errors'
import { forgetThread } from './last-thread'
import { service } from './service'

export interface ChatKitConfig {
  api: {
    /** A method, so that the contract's function, which does not accept ChatKit's `null`, can be assigned. */
    getClientSecret(existing?: string | null): Promise<string>
  }
  theme?: {
    primaryColor?: string
    darkMode?: boolean
  }
  /** Called with the text of each message that the user sends. */
  onMessage?: (message: string) => void
  onError?: (error: Error) => void
}

/** A signed-in user's bearer token, or a function that returns the current one. Empty when no user is signed in. */
export type TokenSource = string | null | undefined | (() => string | null | undefined | Promise<string | null | undefined>)

const CALL_TIMEOUT_MS = 15_000 // the service gives OpenAI ten seconds
const MAX_LIFETIME_SECONDS = 600
const EXPIRY_MARGIN_MS = 15_000 // a message should arrive before its secret expires

interface Timestamp {
  monotonic: number
  wall: number
}

/**
 * A session that was issued to this page. Its age is measured by two clocks: the monotonic one is immune to changes of the
 * system time, but may stop while a laptop sleeps; the wall clock does not.
 */
interface IssuedSession {
  sessionId: string
  requestedAt: Timestamp
  lifetimeMs: number
  /** The age up to which `getClientSecret` returns the secret: shorter than the lifetime. */
  reusableMs: number
}

const issued = new Map<string, IssuedSession>() // never pruned: an unknown secret is taken for valid
let newest: string | null = null
let pending: Promise<string> | null = null
let authChanges = 0
let tokenSource: TokenSource

/** Set the token whenever the signed-in user changes. Expires all secrets of this page: users never share a session. */
export function setAuthToken(source: TokenSource): void {
  tokenSource = source
  authChanges += 1
  issued.forEach((_, secret) => expire(secret))
  pending = null
}

/**
 * Return a valid client secret for ChatKit.
 *
 * `existing` is returned without a call unless it has expired; a secret that was not issued to this page is taken for valid.
 * An expired one is replaced by the newest secret of the page, or by a new session if that has expired, too. Concurrent callers
 * share one call.
 *
 * Throws a `ServiceError`, or the error of the token source.
 */
export async function getClientSecret(existing?: string | null): Promise<string> {
  if (existing && !isExpired(existing)) {
    console.log('Reusing existing ChatKit client secret')
    return existing
  }
  if (existing && newest && !isExpired(newest)) return newest
  if (!pending) {
    const call = createSession().finally(() => {
      if (pending === call) pending = null
    })
    pending = call
  }
  return pending
}

/**
 * End the sessions of this page when the user signs out, which invalidates their secrets, and forget the last conversation.
 * Call it before `setAuthToken(null)`: only their owner can end sessions.
 *
 * Throws a `ServiceError` if a session could not be ended. It then expires within ten minutes.
 */
export async function endSessions(): Promise<void> {
  forgetThread()
  const active = Array.from(issued.values()).filter((session) => ageMs(session) < session.lifetimeMs)
  await Promise.all(
    active.map(async (session) => {
      session.reusableMs = -Infinity
      const response = await call('DELETE', `/${encodeURIComponent(session.sessionId)}`)
      if (!response.ok && response.status !== 404) {
        throw responseError(response, await readJson(response), 'The session could not be ended', userMessageFor)
      }
      session.lifetimeMs = -Infinity
    }),
  )
}

/** The id and the remaining lifetime of a session that was issued to this page, without its secret. */
export function describeSession(secret: string): { sessionId: string; secondsLeft: number } | null {
  const session = issued.get(secret)
  return session
    ? { sessionId: session.sessionId, secondsLeft: Math.max(0, (session.lifetimeMs - ageMs(session)) / 1000) }
    : null
}

/** Treat a secret as expired: the next `getClientSecret` with it returns another one. */
export function expire(secret: string): void {
  const session = issued.get(secret)
  if (session) session.lifetimeMs = session.reusableMs = -Infinity
}

export const chatKitConfig: ChatKitConfig = {
  api: { getClientSecret },
  theme: { primaryColor: '#0070f3', darkMode: false },
}

function now(): Timestamp {
  return { monotonic: performance.now(), wall: Date.now() }
}

function ageMs({ requestedAt }: IssuedSession): number {
  return Math.max(performance.now() - requestedAt.monotonic, Date.now() - requestedAt.wall)
}

function isExpired(secret: string): boolean {
  const session = issued.get(secret)
  return session !== undefined && ageMs(session) >= session.reusableMs
}

async function createSession(): Promise<string> {
  console.log('Creating new ChatKit session')
  try {
    const requestedAt = now()
    const authChangesBefore = authChanges
    const response = await call('POST')
    const body = await readJson(response)
    if (!response.ok) throw responseError(response, body, 'Session creation failed', userMessageFor)
    const data = body?.data
    const secret = data?.client_secret
    if (typeof secret !== 'string' || !secret) {
      throw new ServiceError(body ? 'No client secret in response' : 'Invalid response from server', USER_MESSAGES.again, {
        status: response.status,
      })
    }
    remember(secret, String(data?.session_id), requestedAt, data?.expires_in)
    if (authChanges !== authChangesBefore) expire(secret) // issued to the previous user
    console.log('Got ChatKit session:', data?.session_id)
    return secret
  } catch (error) {
    console.error('Error getting ChatKit session:', error)
    throw error
  }
}

/** The lifetime counts from before the call. The secret is reused until shortly before its end, and for at least half of it. */
function remember(secret: string, sessionId: string, requestedAt: Timestamp, expiresIn: unknown): void {
  const seconds =
    typeof expiresIn === 'number' && expiresIn > 0 ? Math.min(expiresIn, MAX_LIFETIME_SECONDS) : MAX_LIFETIME_SECONDS
  const lifetimeMs = seconds * 1000
  issued.set(secret, {
    sessionId,
    requestedAt,
    lifetimeMs,
    reusableMs: lifetimeMs - Math.min(EXPIRY_MARGIN_MS, lifetimeMs / 2),
  })
  newest = secret
}

async function call(method: 'POST' | 'DELETE', path = ''): Promise<Response> {
  const headers: Record<string, string> = { 'Content-Type': 'application/json' }
  const token = typeof tokenSource === 'function' ? await tokenSource() : tokenSource
  if (token) headers.Authorization = `Bearer ${token}`
  const controller = new AbortController()
  const timer = setTimeout(() => controller.abort(), CALL_TIMEOUT_MS)
  try {
    return await fetch(`${service().apiUrl}/api/chatkit/sessions${path}`, {
      method,
      headers,
      credentials: 'include', // the cookie that identifies an anonymous visitor
      signal: controller.signal,
    })
  } catch (error) {
    if (controller.signal.aborted) throw new ServiceError('The session request timed out', USER_MESSAGES.down)
    throw networkError(error)
  } finally {
    clearTimeout(timer)
  }
}

function userMessageFor(status: number, code?: string): string {
  if (code === 'authentication_required' || code === 'invalid_token') return USER_MESSAGES.signIn
  if (status === 429) return USER_MESSAGES.busy
  if (status > 500) return USER_MESSAGES.down
  return USER_MESSAGES.configuration
}
