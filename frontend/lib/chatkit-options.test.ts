import type { ChatKitOptions, CustomApiConfig, HostedApiConfig } from '@openai/chatkit'
import { afterEach, beforeEach, describe, expect, expectTypeOf, it, vi } from 'vitest'
import { chatKitApi, chatKitTheme } from './chatkit-options'
import { type GetClientSecret, PageSession } from './page-session'

const URL = 'http://localhost:8000/api/chatkit'
const HELLO = JSON.stringify({ type: 'threads.create', params: { input: { content: [{ type: 'input_text', text: 'Hello' }] } } })

let fetchMock: ReturnType<typeof vi.fn>
let minted: number
let getClientSecret: ReturnType<typeof vi.fn<GetClientSecret>>

beforeEach(() => {
  fetchMock = vi.fn(async () => new Response('{}'))
  vi.stubGlobal('fetch', fetchMock)
  minted = 0
  getClientSecret = vi.fn(async (existing?: string | null) => existing || `cs_${++minted}`)
})

afterEach(() => void vi.unstubAllGlobals())

function selfHosted(onMessage?: (message: string) => void): CustomApiConfig & { fetch: typeof fetch } {
  return chatKitApi(PageSession.of(getClientSecret), 'local-dev', onMessage) as CustomApiConfig & { fetch: typeof fetch }
}

function refusal(code: string) {
  return new Response(JSON.stringify({ status: 'error', message: '…', code }), { status: 401 })
}

/** The secrets that the service was called with, in order. */
function used(): (string | null)[] {
  return fetchMock.mock.calls.map(([, init]) => new Headers(init.headers).get('Authorization'))
}

describe('which chat', () => {
  it('a hosted one takes getClientSecret, and no domain key beside it', async () => {
    const api = chatKitApi(PageSession.of(getClientSecret), null) as HostedApiConfig
    expect(Object.keys(api)).toEqual(['getClientSecret'])
    expect(await api.getClientSecret(null)).toBe('cs_1')
    expect(await api.getClientSecret('cs_1')).toBe('cs_1')
    expect(getClientSecret).toHaveBeenLastCalledWith('cs_1')
  })

  it('a self-hosted one takes its address, the domain key and fetch', () => {
    expect(selfHosted()).toEqual({ url: URL, domainKey: 'local-dev', fetch: expect.any(Function) })
  })

  it('both are what ChatKit takes', () => {
    expectTypeOf<ReturnType<typeof chatKitApi>>().toEqualTypeOf<ChatKitOptions['api']>()
  })
})

describe('fetch of a self-hosted chat', () => {
  it('adds the secret and leaves the rest as it is', async () => {
    const { signal } = new AbortController()
    await selfHosted().fetch(URL, { method: 'POST', body: HELLO, signal, headers: { 'chatkit-frontend-version': '1' } })
    const [url, init] = fetchMock.mock.calls[0]!
    expect(url).toBe(URL)
    expect(init).toMatchObject({ method: 'POST', body: HELLO, signal })
    expect(Object.fromEntries(init.headers)).toEqual({ authorization: 'Bearer cs_1', 'chatkit-frontend-version': '1' })
  })

  it('takes a Request, too', async () => {
    const onMessage = vi.fn()
    fetchMock.mockResolvedValueOnce(refusal('client_secret_expired'))
    const request = new Request(URL, { method: 'POST', body: HELLO, headers: { 'X-Kept': 'yes' } })
    await selfHosted(onMessage).fetch(request)
    const [again, init] = fetchMock.mock.calls[1]!
    expect(await again.text()).toBe(HELLO)
    expect(new Headers(init.headers).get('X-Kept')).toBe('yes')
    expect(onMessage.mock.calls).toEqual([['Hello']])
  })

  it.each(['client_secret_expired', 'client_secret_unknown'])('%s: one new secret, and the same call again', async (code) => {
    fetchMock.mockResolvedValueOnce(refusal(code))
    const response = await selfHosted().fetch(URL, { method: 'POST', body: HELLO })
    expect(response.status).toBe(200)
    expect(used()).toEqual(['Bearer cs_1', 'Bearer cs_2'])
    expect(fetchMock.mock.calls.map(([, init]) => init.body)).toEqual([HELLO, HELLO])
  })

  it('is not repeated a second time', async () => {
    fetchMock.mockImplementation(async () => refusal('client_secret_unknown'))
    const response = await selfHosted().fetch(URL, { method: 'POST', body: HELLO })
    expect(response.status).toBe(401)
    expect((await response.json()).code).toBe('client_secret_unknown')
    expect(used()).toHaveLength(2)
  })

  it.each([
    ['another 401', () => refusal('authentication_required')],
    ['a 401 of a proxy', () => new Response('<html>', { status: 401 })],
    ['a 500', () => new Response('{}', { status: 500 })],
  ])('%s is ChatKit’s to see', async (_, answer) => {
    fetchMock.mockImplementationOnce(async () => answer())
    const response = await selfHosted().fetch(URL, { method: 'POST', body: HELLO })
    expect(response.status).toBe(answer().status)
    expect(used()).toHaveLength(1)
  })

  it('five calls whose secret is gone need one new secret', async () => {
    const five = [1, 2, 3, 4, 5].map(() => selfHosted())
    await five[0]!.fetch(URL)
    fetchMock.mockImplementation(async (_, init) =>
      init.headers.get('Authorization') === 'Bearer cs_1' ? refusal('client_secret_unknown') : new Response('{}'),
    )
    let shared: Promise<string> | null = null // as the contract's getClientSecret: callers at the same time share one call
    getClientSecret.mockImplementation((existing) => {
      if (existing) return Promise.resolve(existing)
      shared = shared || Promise.resolve(`cs_${++minted}`)
      return shared
    })
    const answers = await Promise.all(five.map((api) => api.fetch(URL)))
    expect(answers.map((answer) => answer.status)).toEqual([200, 200, 200, 200, 200])
    expect(minted).toBe(2)
  })

  it('fails as getClientSecret fails, and calls nobody', async () => {
    getClientSecret.mockRejectedValue(new Error('no session'))
    await expect(selfHosted().fetch(URL)).rejects.toThrow('no session')
    expect(fetchMock).not.toHaveBeenCalled()
  })
})

describe('onMessage', () => {
  const said = (body: unknown) => JSON.stringify(body)

  it.each([
    ['a new conversation', HELLO, ['Hello']],
    [
      'the next message, with a tag in it',
      said({
        type: 'threads.add_user_message',
        params: { input: { content: [{ type: 'input_text', text: 'Ask ' }, { type: 'input_tag', text: '@Ada', id: 'ada' }] } },
      }),
      ['Ask @Ada'],
    ],
    ['a look at the history', said({ type: 'threads.list', params: {} }), []],
    ['a message of attachments only', said({ type: 'threads.create', params: { input: { content: [] } } }), []],
    ['something else', 'file bytes', []],
    ['something of another shape', said({ type: 'threads.create' }), []],
  ])('%s', async (_, body, expected) => {
    const onMessage = vi.fn()
    await selfHosted(onMessage).fetch(URL, { method: 'POST', body })
    expect(onMessage.mock.calls.map(([message]) => message)).toEqual(expected)
  })

  it('once for a message that had to be repeated, and not for one that was refused', async () => {
    const onMessage = vi.fn()
    fetchMock.mockResolvedValueOnce(refusal('client_secret_expired'))
    await selfHosted(onMessage).fetch(URL, { method: 'POST', body: HELLO })
    expect(onMessage).toHaveBeenCalledTimes(1)
    fetchMock.mockResolvedValueOnce(new Response('{}', { status: 503 }))
    await selfHosted(onMessage).fetch(URL, { method: 'POST', body: HELLO })
    expect(onMessage).toHaveBeenCalledTimes(1)
  })
})

it.each([
  [undefined, { colorScheme: 'light' }],
  [{ darkMode: true }, { colorScheme: 'dark' }],
  [{ primaryColor: '#0070f3', darkMode: false }, { colorScheme: 'light', color: { accent: { primary: '#0070f3', level: 2 } } }],
] as const)('the theme %j in ChatKit’s terms', (theme, expected) => {
  expect(chatKitTheme(theme)).toEqual(expected)
})
