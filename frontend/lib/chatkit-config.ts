/**
 * The contract's configuration of ChatKit, and its one `getClientSecret`. Needs neither React nor Next.js.
 *
 * A session lives at most ten minutes. ChatKit calls `getClientSecret(existing)` when it wants to go on with a secret, so a
 * secret that is alive is returned as it is, and one that has run out is replaced.
 */

import { ServiceError, USER_MESSAGES, networkError, readJson, refusal } from './errors'
import { forgetThread } from './last-thread'
import { service } from './service'

export interface ChatKitConfig {
  api: {
    /** A method, so that a function of the contract's type, which does not take ChatKit's `null`, can be assigned. */
    getClientSecret(existing?: string | null): Promise<string>
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

const CALL_LIMIT_MS = 15_000 // the service gives its own upstream ten seconds
const LONGEST_LIFE_SECONDS = 600
const MARGIN_MS = 15_000 // a message that is sent with a secret should arrive while it is alive

interface Moment {
  monotonic: number
  wall: number
}

/**
 * A session that this page was issued. Its end is counted by the page's own monotonic clock, which a wrong time of day can't
 * mislead, and by the time of day, because the monotonic one may stand still while a laptop sleeps.
 */
interface Issued {
  sessionId: string
  asked: Moment
  lifeMs: number
  /** How much of its life it is handed out for. */
  usefulMs: number
}

const issued = new Map<string, Issued>() // kept as long as the page: one forgotten would pass for somebody else's
let newest: string | null = null
let underWay: Promise<string> | null = null
let signIns = 0
let tokenSource: TokenSource

/**
 * Say who is signed in, each time that changes. From then on all secrets of this page count as run out: another user gets
 * sessions of their own.
 */
export function setAuthToken(source: TokenSource): void {
  tokenSource = source
  signIns += 1
  issued.forEach((_, secret) => letRunOut(secret))
  underWay = null
}

/**
 * A secret to use ChatKit with.
 *
 * `existing` is returned, with no call, as long as it is alive, or if this page was not the one to be issued it. For one that
 * has run out there is a new one: the page's newest, if that is alive, else the service is asked for a session. Callers at the
 * same time share one call.
 *
 * Throws a `ServiceError`, or what the token source has thrown.
 */
export async function getClientSecret(existing?: string | null): Promise<string> {
  if (existing && !hasRunOut(existing)) {
    console.log('Reusing existing ChatKit client secret')
    return existing
  }
  if (existing && newest && !hasRunOut(newest)) return newest
  if (!underWay) {
    const call = createSession().finally(() => {
      if (underWay === call) underWay = null
    })
    underWay = call
  }
  return underWay
}

/**
 * End the sessions of this page, at a sign-out, so that their secrets open nothing any more, and forget which conversation this
 * browser was in. Call it before `setAuthToken` says that nobody is signed in, because only the one whose sessions they are can
 * end them.
 *
 * Throws a `ServiceError` when the service could not be told. They end by themselves then, within ten minutes.
 */
export async function endSessions(): Promise<void> {
  forgetThread()
  const alive = Array.from(issued.values()).filter((session) => ageMs(session) < session.lifeMs)
  await Promise.all(
    alive.map(async (session) => {
      session.usefulMs = -Infinity
      const response = await call('DELETE', `/${encodeURIComponent(session.sessionId)}`)
      if (!response.ok && response.status !== 404) {
        throw refusal(response, await readJson(response), 'The session could not be ended', sentenceFor)
      }
      session.lifeMs = -Infinity
    }),
  )
}

/** What may be shown of a session that this page was issued: its id, and how many seconds it has left. */
export function describeSession(secret: string): { sessionId: string; secondsLeft: number } | null {
  const session = issued.get(secret)
  return session ? { sessionId: session.sessionId, secondsLeft: Math.max(0, (session.lifeMs - ageMs(session)) / 1000) } : null
}

/** Treat a secret as if its time were over: whoever asks with it next gets a new one. */
export function letRunOut(secret: string): void {
  const session = issued.get(secret)
  if (session) session.lifeMs = session.usefulMs = -Infinity // whatever the clocks say
}

export const chatKitConfig: ChatKitConfig = {
  api: { getClientSecret },
  theme: { primaryColor: '#0070f3', darkMode: false },
}

function now(): Moment {
  return { monotonic: performance.now(), wall: Date.now() }
}

function ageMs({ asked }: Issued): number {
  return Math.max(performance.now() - asked.monotonic, Date.now() - asked.wall)
}

function hasRunOut(secret: string): boolean {
  const session = issued.get(secret)
  return session !== undefined && ageMs(session) >= session.usefulMs
}

async function createSession(): Promise<string> {
  console.log('Creating new ChatKit session')
  try {
    const asked = now()
    const signIn = signIns
    const response = await call('POST')
    const body = await readJson(response)
    if (!response.ok) throw refusal(response, body, 'Session creation failed', sentenceFor)
    const data = body?.data
    const secret = data?.client_secret
    if (typeof secret !== 'string' || !secret) {
      throw new ServiceError(body ? 'No client secret in response' : 'Invalid response from server', USER_MESSAGES.again, {
        status: response.status,
      })
    }
    remember(secret, String(data?.session_id), asked, data?.expires_in)
    if (signIn !== signIns) letRunOut(secret) // somebody else has signed in meanwhile
    console.log('Got ChatKit session:', data?.session_id)
    return secret
  } catch (error) {
    console.error('Error getting ChatKit session:', error)
    throw error
  }
}

/** Counted from before the call, so that the time it took is not given twice; and a margin earlier, but not before half its life. */
function remember(secret: string, sessionId: string, asked: Moment, expiresIn: unknown): void {
  const seconds =
    typeof expiresIn === 'number' && expiresIn > 0 ? Math.min(expiresIn, LONGEST_LIFE_SECONDS) : LONGEST_LIFE_SECONDS
  const lifeMs = seconds * 1000
  issued.set(secret, { sessionId, asked, lifeMs, usefulMs: lifeMs - Math.min(MARGIN_MS, lifeMs / 2) })
  newest = secret
}

async function call(method: 'POST' | 'DELETE', path = ''): Promise<Response> {
  const headers: Record<string, string> = { 'Content-Type': 'application/json' }
  const token = typeof tokenSource === 'function' ? await tokenSource() : tokenSource
  if (token) headers.Authorization = `Bearer ${token}`
  const controller = new AbortController()
  const timer = setTimeout(() => controller.abort(), CALL_LIMIT_MS)
  try {
    return await fetch(`${service().apiUrl}/api/chatkit/sessions${path}`, {
      method,
      headers,
      credentials: 'include', // the visitor's cookie, which keeps a visitor the same person
      signal: controller.signal,
    })
  } catch (error) {
    if (controller.signal.aborted) throw new ServiceError('The session request took too long', USER_MESSAGES.down)
    throw networkError(error)
  } finally {
    clearTimeout(timer)
  }
}

function sentenceFor(status: number, code?: string): string {
  if (code === 'authentication_required' || code === 'invalid_token') return USER_MESSAGES.signIn
  if (status === 429) return USER_MESSAGES.busy
  if (status > 500) return USER_MESSAGES.down
  return USER_MESSAGES.configuration
}
