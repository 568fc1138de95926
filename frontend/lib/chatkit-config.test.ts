import { readFileSync, readdirSync } from 'node:fs'
import type { HostedApiConfig } from '@openai/chatkit'
import { afterEach, beforeEach, describe, expect, expectTypeOf, it, vi } from 'vitest'
import {
  type ChatKitConfig,
  chatKitConfig,
  describeSession,
  endSessions,
  getClientSecret,
  expire,
  setAuthToken,
} from './chatkit-config'
import { type ServiceError, userMessage } from './errors'
import { setService } from './service'

const API_URL = 'http://localhost:8000'

let fetchMock: ReturnType<typeof vi.fn>
let logged: unknown[][]

function respondWith(...responses: (Response | Error | (() => Promise<Response>))[]) {
  for (const response of responses) {
    fetchMock.mockImplementationOnce(() => {
      if (response instanceof Error) return Promise.reject(response)
      return typeof response === 'function' ? response() : Promise.resolve(response)
    })
  }
}

function session(secret: string, expires_in: number | undefined = 600) {
  return json({ status: 'success', data: { client_secret: secret, session_id: `ses_of_${secret}`, expires_in } })
}

function json(body: unknown, init: ResponseInit = {}) {
  return new Response(JSON.stringify(body), { headers: { 'Content-Type': 'application/json' }, ...init })
}

async function failure(): Promise<ServiceError> {
  return getClientSecret().then(
    () => Promise.reject(new Error('getClientSecret did not fail')),
    (error) => error,
  )
}

beforeEach(() => {
  setAuthToken(undefined)
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance', 'Date'] })
  fetchMock = vi.fn()
  vi.stubGlobal('fetch', fetchMock)
  logged = []
  for (const method of ['log', 'error'] as const) {
    vi.spyOn(console, method).mockImplementation((...parts) => void logged.push(parts))
  }
})

afterEach(() => {
  vi.useRealTimers()
  vi.unstubAllGlobals()
})

describe('getClientSecret(), tested by the contract', () => {
  it('should create new session when no existing secret', async () => {
    respondWith(json({ status: 'success', data: { client_secret: 'cs_test_abc123', session_id: 'ses_test_xyz789' } }))
    expect(await getClientSecret()).toBe('cs_test_abc123')
    expect(fetchMock).toHaveBeenCalledWith(`${API_URL}/api/chatkit/sessions`, expect.objectContaining({ method: 'POST' }))
  })

  it('should reuse existing secret', async () => {
    expect(await getClientSecret('cs_existing_123')).toBe('cs_existing_123')
    expect(fetchMock).not.toHaveBeenCalled()
  })

  it('should handle fetch errors', async () => {
    respondWith(new Error('Network error'))
    await expect(getClientSecret()).rejects.toThrow('Network error')
  })

  it('should handle backend errors', async () => {
    respondWith(json({ status: 'error', message: 'Auth failed' }, { status: 401 }))
    await expect(getClientSecret()).rejects.toThrow('Auth failed')
  })
})

describe('the lifetime of a secret', () => {
  it('a valid one is reused, and an expired one is replaced', async () => {
    respondWith(session('cs_first', 600), session('cs_second', 600))
    const first = await getClientSecret()
    vi.advanceTimersByTime(584_000)
    expect(await getClientSecret(first)).toBe('cs_first')
    expect(fetchMock).toHaveBeenCalledTimes(1)
    vi.advanceTimersByTime(2_000)
    expect(await getClientSecret(first)).toBe('cs_second')
    expect(await getClientSecret('cs_second')).toBe('cs_second')
    expect(fetchMock).toHaveBeenCalledTimes(2)
  })

  it('counts from before the call that issued it', async () => {
    respondWith(async () => {
      vi.advanceTimersByTime(9_000)
      return session('cs_slow', 60)
    }, session('cs_next'))
    await getClientSecret()
    vi.advanceTimersByTime(37_000)
    expect(await getClientSecret('cs_slow')).toBe('cs_next')
  })

  it('of a few seconds: the secret is reused for half of them', async () => {
    respondWith(session('cs_short', 4), session('cs_next'))
    await getClientSecret()
    vi.advanceTimersByTime(1_900)
    expect(await getClientSecret('cs_short')).toBe('cs_short')
    vi.advanceTimersByTime(200)
    expect(await getClientSecret('cs_short')).toBe('cs_next')
  })

  it('ends even if the monotonic clock stopped during sleep', async () => {
    respondWith(session('cs_evening'), session('cs_morning'))
    await getClientSecret()
    const evening = performance.now()
    vi.setSystemTime(Date.now() + 8 * 3600_000)
    vi.spyOn(performance, 'now').mockReturnValue(evening + 1000)
    expect(await getClientSecret('cs_evening')).toBe('cs_morning')
  })

  it('does not end when the system time is set back', async () => {
    respondWith(session('cs_first'), session('cs_second'))
    await getClientSecret()
    vi.setSystemTime(Date.now() - 24 * 3600_000)
    expect(await getClientSecret('cs_first')).toBe('cs_first')
    vi.advanceTimersByTime(590_000)
    expect(await getClientSecret('cs_first')).toBe('cs_second')
  })

  it.each([undefined, 0, -1, 1e9, 'soon'])('is ten minutes when expires_in is %s', async (expiresIn) => {
    respondWith(json({ data: { client_secret: 'cs_odd', session_id: 'ses_1', expires_in: expiresIn } }), session('cs_next'))
    await getClientSecret()
    vi.advanceTimersByTime(580_000)
    expect(await getClientSecret('cs_odd')).toBe('cs_odd')
    vi.advanceTimersByTime(10_000)
    expect(await getClientSecret('cs_odd')).toBe('cs_next')
  })
})

describe('describeSession() and expire()', () => {
  it('describes the id and the remaining seconds of the sessions of this page only', async () => {
    respondWith(session('cs_1', 600))
    await getClientSecret()
    vi.advanceTimersByTime(90_000)
    expect(describeSession('cs_1')).toEqual({ sessionId: 'ses_of_cs_1', secondsLeft: 510 })
    vi.advanceTimersByTime(600_000)
    expect(describeSession('cs_1')?.secondsLeft).toBe(0)
    expect(describeSession('cs_of_another_page')).toBeNull()
  })

  it('end the lifetime of a session', async () => {
    respondWith(session('cs_1'), session('cs_2'))
    await getClientSecret()
    expire('cs_1')
    expect(describeSession('cs_1')?.secondsLeft).toBe(0)
    expect(await getClientSecret('cs_1')).toBe('cs_2')
  })

  it('a secret that expired hours ago is still replaced', async () => {
    respondWith(session('cs_old'), session('cs_2'), session('cs_3'))
    await getClientSecret()
    vi.advanceTimersByTime(3_600_000)
    expect(await getClientSecret('cs_old')).toBe('cs_2')
    vi.advanceTimersByTime(3_600_000)
    expect(await getClientSecret('cs_old')).toBe('cs_3')
  })
})

describe('consecutive callers', () => {
  it('with an expired secret share the new one', async () => {
    respondWith(session('cs_1'), session('cs_2'))
    await getClientSecret()
    vi.advanceTimersByTime(590_000)
    expect(await getClientSecret('cs_1')).toBe('cs_2')
    vi.advanceTimersByTime(1_000)
    expect(await getClientSecret('cs_1')).toBe('cs_2')
    expect(fetchMock).toHaveBeenCalledTimes(2)
  })
})

describe('concurrent callers', () => {
  it('share one call, and later ones make another', async () => {
    respondWith(session('cs_shared'), session('cs_later'))
    const secrets = await Promise.all(Array.from({ length: 5 }, () => getClientSecret()))
    expect(new Set(secrets)).toEqual(new Set(['cs_shared']))
    expect(fetchMock).toHaveBeenCalledTimes(1)
    expect(await getClientSecret()).toBe('cs_later')
  })

  it('share a failure, and the next one retries', async () => {
    respondWith(new Error('Failed to fetch'), session('cs_ok'))
    const results = await Promise.allSettled([getClientSecret(), getClientSecret()])
    expect(results.map((result) => result.status)).toEqual(['rejected', 'rejected'])
    expect(await getClientSecret()).toBe('cs_ok')
  })
})

describe('errors have a message for users', () => {
  it.each([
    [401, 'openai_authentication_failed', 'Unable to start chat. Please check configuration.'],
    [401, 'authentication_required', 'Please sign in, and try again.'],
    [401, 'invalid_token', 'Please sign in, and try again.'],
    [403, 'origin_not_allowed', 'Unable to start chat. Please check configuration.'],
    [429, 'openai_rate_limited', 'Too many requests. Please try again in a moment.'],
    [500, 'chatkit_workflow_missing', 'Unable to start chat. Please check configuration.'],
    [503, 'openai_unavailable', 'Service temporarily down. Please try again.'],
  ])('%i %s', async (status, code, userMessage) => {
    respondWith(json({ status: 'error', message: 'What it is', code }, { status, headers: { 'Retry-After': '7' } }))
    expect(await failure()).toMatchObject({
      name: 'ServiceError',
      message: 'What it is',
      userMessage,
      status,
      code,
      retryAfter: 7,
    })
  })

  it('a proxy that answers HTML', async () => {
    respondWith(new Response('<html>Bad gateway</html>', { status: 502, statusText: 'Bad Gateway' }))
    expect(await failure()).toMatchObject({ message: 'Session creation failed: Bad Gateway', status: 502 })
  })

  it('no network', async () => {
    respondWith(new TypeError('Failed to fetch'))
    expect(await failure()).toMatchObject({
      message: 'Failed to fetch',
      userMessage: 'Network connection lost. Please check your internet.',
    })
  })

  it.each([
    [json({ client_secret: 'missing' }), 'No client secret in response'],
    [json({ data: { client_secret: '' } }), 'No client secret in response'],
    [json({ data: { client_secret: 5 } }), 'No client secret in response'],
    [json(null), 'Invalid response from server'],
    [new Response('It works!'), 'Invalid response from server'],
  ])('a response without a secret', async (response, message) => {
    respondWith(response)
    expect(await failure()).toMatchObject({ message, userMessage: 'Unable to start chat. Please try again.' })
  })

  it('a call that hangs ends', async () => {
    fetchMock.mockImplementationOnce(
      (_url: string, init: RequestInit) =>
        new Promise((_resolve, reject) => init.signal?.addEventListener('abort', () => reject(new Error('aborted')))),
    )
    const failing = failure()
    await vi.advanceTimersByTimeAsync(15_000)
    expect(await failing).toMatchObject({ userMessage: 'Service temporarily down. Please try again.' })
  })
})

describe('signed-in users', () => {
  const sentToken = () => fetchMock.mock.calls.at(-1)?.[1].headers.Authorization

  it.each([
    ['a value', 'jwt-1'],
    ['a function', () => 'jwt-1'],
    ['an async function', async () => 'jwt-1'],
  ])('send the token from %s', async (_kind, source) => {
    setAuthToken(source)
    respondWith(session('cs_1'))
    await getClientSecret()
    expect(sentToken()).toBe('Bearer jwt-1')
  })

  it.each([[null], [undefined], [''], [() => null]])('no token is sent for %s', async (source) => {
    setAuthToken(source)
    respondWith(session('cs_1'))
    await getClientSecret()
    expect(sentToken()).toBeUndefined()
  })

  it('another user does not reuse the session of the previous one', async () => {
    respondWith(session('cs_of_ada'), session('cs_of_bob'))
    await getClientSecret()
    setAuthToken('bob')
    expect(await getClientSecret('cs_of_ada')).toBe('cs_of_bob')
    expect(await getClientSecret('cs_of_bob')).toBe('cs_of_bob')
  })

  it('another user does not share the pending call of the previous one', async () => {
    let release: (response: Response) => void = () => {}
    respondWith(() => new Promise((resolve) => (release = resolve)), session('cs_of_bob'))
    const ada = getClientSecret()
    await Promise.resolve()
    setAuthToken('bob')
    expect(await getClientSecret()).toBe('cs_of_bob')
    release(session('cs_of_ada'))
    expect(await ada).toBe('cs_of_ada')
    respondWith(session('cs_of_bob_too'))
    expect(await getClientSecret('cs_of_ada')).toBe('cs_of_bob_too')
  })
})

describe('signing out', () => {
  const ended = () => fetchMock.mock.calls.filter(([, init]) => init.method === 'DELETE').map(([url]) => url)

  it('ends the live sessions, each with the token of its user', async () => {
    setAuthToken('ada')
    respondWith(session('cs_old', 60), session('cs_1'), session('cs_2'))
    await getClientSecret()
    vi.advanceTimersByTime(60_000)
    await getClientSecret()
    await getClientSecret()
    respondWith(new Response('{}'), new Response('{}'))
    await endSessions()
    expect(ended()).toEqual([`${API_URL}/api/chatkit/sessions/ses_of_cs_1`, `${API_URL}/api/chatkit/sessions/ses_of_cs_2`])
    expect(fetchMock.mock.lastCall?.[1]).toMatchObject({ credentials: 'include', headers: { Authorization: 'Bearer ada' } })
    await endSessions()
    expect(ended()).toHaveLength(2)
    respondWith(session('cs_3'))
    expect(await getClientSecret('cs_2')).toBe('cs_3')
  })

  it('forgets the last conversation, even if the service does not respond', async () => {
    const kept = new Map([['chatkit.thread', 'thr_of_ada']])
    vi.stubGlobal('localStorage', { removeItem: (key: string) => kept.delete(key) })
    respondWith(session('cs_1'), new TypeError('Failed to fetch'))
    await getClientSecret()
    await expect(endSessions()).rejects.toThrow('Failed to fetch')
    expect(kept.size).toBe(0)
  })

  it('ignores a session that no longer exists', async () => {
    respondWith(session('cs_1'), json({ status: 'error', message: 'Not found', code: 'not_found' }, { status: 404 }))
    await getClientSecret()
    await endSessions()
    await endSessions()
    expect(ended()).toHaveLength(1)
  })

  it('throws when it fails, does not reuse the secret, and can be retried', async () => {
    respondWith(
      session('cs_1'),
      new Response('<html>', { status: 502, statusText: 'Bad Gateway' }),
      new Response('{}'),
      session('cs_2'),
    )
    await getClientSecret()
    await expect(endSessions()).rejects.toMatchObject({ message: 'The session could not be ended: Bad Gateway', status: 502 })
    await endSessions()
    expect(ended()).toHaveLength(2)
    expect(await getClientSecret('cs_1')).toBe('cs_2')
  })
})

it('has a user message for every error', async () => {
  respondWith(json({ status: 'error', message: 'OpenAI authentication failed' }, { status: 401 }))
  expect(userMessage(await failure())).toBe('Unable to start chat. Please check configuration.')
  expect(userMessage(new Error('threads.create was answered 429'))).toBe('Something went wrong. Please try again.')
})

it('sends the visitor cookie', async () => {
  respondWith(session('cs_1'))
  await getClientSecret()
  expect(fetchMock.mock.calls[0]?.[1].credentials).toBe('include')
})

it('logs the session id, and never a secret or a token', async () => {
  setAuthToken('jwt-very-secret')
  respondWith(session('cs_very_secret'), new TypeError('Failed to fetch'))
  await getClientSecret()
  await getClientSecret('cs_very_secret')
  await failure()
  const everything = logged.flat().map(String).join('\n')
  expect(everything).toContain('ses_of_cs_very_secret')
  expect(everything.replace('ses_of_cs_very_secret', '')).not.toMatch(/cs_very_secret|jwt-very-secret/)
})

it.each([
  'Failed to fetch',
  'network error',
  'NetworkError when attempting to fetch resource.',
  'Error in input stream',
  'Load failed',
])('recognizes the network error of a browser: %s', (message) => {
  expect(userMessage(new TypeError(message))).toBe('Network connection lost. Please check your internet.')
})

it('is independent of the environment, like all of lib/', () => {
  const folder = new URL('.', import.meta.url)
  const sources = readdirSync(folder).filter((name) => !name.includes('.test.'))
  expect(sources).toContain('chatkit-config.ts')
  expect(sources.filter((name) => readFileSync(new URL(name, folder), 'utf8').includes('process.'))).toEqual([])
})

it('calls the service where the app says it is', async () => {
  setService({ apiUrl: 'https://api.example.com' })
  respondWith(session('cs_1'))
  await getClientSecret()
  expect(fetchMock.mock.calls[0]?.[0]).toBe('https://api.example.com/api/chatkit/sessions')
  setService({ apiUrl: '' })
  respondWith(session('cs_2'))
  await getClientSecret()
  expect(fetchMock.mock.calls[1]?.[0]).toBe(`${API_URL}/api/chatkit/sessions`)
})

it('has a type that is assignable to ChatKit’s and to the contract’s', () => {
  interface ContractConfig {
    api: { getClientSecret: (existing?: string) => Promise<string> }
    theme?: { primaryColor?: string; darkMode?: boolean }
    onMessage?: (message: string) => void
    onError?: (error: Error) => void
  }
  expectTypeOf<ContractConfig>().toExtend<ChatKitConfig>()
  expectTypeOf(chatKitConfig).toExtend<ContractConfig>()
  expectTypeOf(chatKitConfig.api).toExtend<HostedApiConfig>()
  expect(chatKitConfig.api.getClientSecret).toBe(getClientSecret)
  expect(chatKitConfig.theme).toEqual({ primaryColor: '#0070f3', darkMode: false })
})
