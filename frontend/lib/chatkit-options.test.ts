import type { ChatKitOptions, CustomApiConfig, HostedApiConfig } from '@openai/chatkit'
import { afterEach, beforeEach, describe, expect, expectTypeOf, it, vi } from 'vitest'
import { type CallListeners, chatKitApi, chatKitTheme, loadChoices } from './chatkit-options'
import type { ServiceError } from './errors'
import { type GetClientSecret, PageSession } from './page-session'
import { setService } from './service'

const URL = 'http://localhost:8000/api/chatkit'
const HELLO = JSON.stringify({
  type: 'threads.create',
  params: { input: { content: [{ type: 'input_text', text: 'Hello' }] } },
})

let fetchMock: ReturnType<typeof vi.fn>
let issued: number
let getClientSecret: ReturnType<typeof vi.fn<GetClientSecret>>

beforeEach(() => {
  fetchMock = vi.fn(async () => new Response('{}'))
  vi.stubGlobal('fetch', fetchMock)
  issued = 0
  getClientSecret = vi.fn(async (existing?: string | null) => existing || `cs_${++issued}`)
})

afterEach(() => {
  vi.unstubAllGlobals()
  setService({})
})

function selfHosted(
  onMessage?: (message: string) => void,
  onFailure?: CallListeners['onFailure'],
): CustomApiConfig & { fetch: typeof fetch } {
  setService({ domainKey: 'local-dev' })
  return chatKitApi(PageSession.of(getClientSecret), { onMessage, onFailure }) as CustomApiConfig & { fetch: typeof fetch }
}

function rejection(code: string) {
  return new Response(JSON.stringify({ status: 'error', message: '…', code }), { status: 401 })
}

/** The `Authorization` headers of the calls, in order. */
function authorizations(): (string | null)[] {
  return fetchMock.mock.calls.map(([, init]) => new Headers(init.headers).get('Authorization'))
}

describe('the models and tools to choose from', () => {
  const choices = { models: [{ id: 'gpt-best', label: 'Best' }] }

  function answer(data: object) {
    fetchMock.mockResolvedValue(new Response(JSON.stringify({ status: 'success', data })))
  }

  it('are what the service lists', async () => {
    setService({ domainKey: 'local-dev' })
    answer(choices)
    expect(await loadChoices()).toEqual(choices)
    expect(fetchMock).toHaveBeenCalledExactlyOnceWith('http://localhost:8000/api/chatkit/composer')
  })

  it('are empty if the service lists none', async () => {
    setService({ domainKey: 'local-dev' })
    answer({})
    expect(await loadChoices()).toBeNull()
  })

  it('are empty, without an error in the chat, if they can’t be loaded', async () => {
    setService({ domainKey: 'local-dev' })
    const logged = vi.spyOn(console, 'error').mockImplementation(() => {})
    fetchMock.mockResolvedValueOnce(new Response('{"status":"error"}', { status: 429 }))
    expect(await loadChoices()).toBeNull()
    fetchMock.mockRejectedValueOnce(new TypeError('Failed to fetch'))
    expect(await loadChoices()).toBeNull()
    expect(logged).toHaveBeenCalledTimes(2)
  })

  it('are not requested in a hosted chat', async () => {
    expect(await loadChoices()).toBeNull()
    expect(fetchMock).not.toHaveBeenCalled()
  })
})

describe('the api option', () => {
  it('hosted: getClientSecret, and no domain key', async () => {
    const api = chatKitApi(PageSession.of(getClientSecret)) as HostedApiConfig
    expect(Object.keys(api)).toEqual(['getClientSecret'])
    expect(await api.getClientSecret(null)).toBe('cs_1')
    expect(await api.getClientSecret('cs_1')).toBe('cs_1')
    expect(getClientSecret).toHaveBeenLastCalledWith('cs_1')
  })

  it('self-hosted: the URL, the domain key and fetch', () => {
    const uploadStrategy = { type: 'two_phase' }
    expect(selfHosted()).toEqual({ url: URL, domainKey: 'local-dev', fetch: expect.any(Function), uploadStrategy })
  })

  it('both have ChatKit’s type', () => {
    expectTypeOf<ReturnType<typeof chatKitApi>>().toEqualTypeOf<ChatKitOptions['api']>()
  })
})

describe('fetch of a self-hosted chat', () => {
  it('adds the secret and changes nothing else', async () => {
    const { signal } = new AbortController()
    await selfHosted().fetch(URL, { method: 'POST', body: HELLO, signal, headers: { 'chatkit-frontend-version': '1' } })
    const [url, init] = fetchMock.mock.calls[0]!
    expect(url).toBe(URL)
    expect(init).toMatchObject({ method: 'POST', body: HELLO, signal })
    expect(Object.fromEntries(init.headers)).toEqual({ authorization: 'Bearer cs_1', 'chatkit-frontend-version': '1' })
  })

  it('accepts a Request', async () => {
    const onMessage = vi.fn()
    fetchMock.mockResolvedValueOnce(rejection('client_secret_expired'))
    const request = new Request(URL, { method: 'POST', body: HELLO, headers: { 'X-Kept': 'yes' } })
    await selfHosted(onMessage).fetch(request)
    const [again, init] = fetchMock.mock.calls[1]!
    expect(await again.text()).toBe(HELLO)
    expect(new Headers(init.headers).get('X-Kept')).toBe('yes')
    expect(onMessage.mock.calls).toEqual([['Hello']])
  })

  it.each(['client_secret_expired', 'client_secret_unknown'])('%s: repeats the call with a new secret', async (code) => {
    fetchMock.mockResolvedValueOnce(rejection(code))
    const response = await selfHosted().fetch(URL, { method: 'POST', body: HELLO })
    expect(response.status).toBe(200)
    expect(authorizations()).toEqual(['Bearer cs_1', 'Bearer cs_2'])
    expect(fetchMock.mock.calls.map(([, init]) => init.body)).toEqual([HELLO, HELLO])
  })

  it('repeats a call only once', async () => {
    fetchMock.mockImplementation(async () => rejection('client_secret_unknown'))
    const response = await selfHosted().fetch(URL, { method: 'POST', body: HELLO })
    expect(response.status).toBe(401)
    expect((await response.json()).code).toBe('client_secret_unknown')
    expect(authorizations()).toHaveLength(2)
  })

  it.each([
    ['another 401', () => rejection('authentication_required')],
    ['a 401 of a proxy', () => new Response('<html>', { status: 401 })],
    ['a 500', () => new Response('{}', { status: 500 })],
  ])('passes %s on to ChatKit', async (_, answer) => {
    fetchMock.mockImplementationOnce(async () => answer())
    const response = await selfHosted().fetch(URL, { method: 'POST', body: HELLO })
    expect(response.status).toBe(answer().status)
    expect(authorizations()).toHaveLength(1)
  })

  it('five calls with a rejected secret share a new one', async () => {
    const five = [1, 2, 3, 4, 5].map(() => selfHosted())
    await five[0]!.fetch(URL)
    fetchMock.mockImplementation(async (_, init) =>
      init.headers.get('Authorization') === 'Bearer cs_1' ? rejection('client_secret_unknown') : new Response('{}'),
    )
    let shared: Promise<string> | null = null // like the contract's getClientSecret: concurrent callers share one call
    getClientSecret.mockImplementation((existing) => {
      if (existing) return Promise.resolve(existing)
      shared = shared || Promise.resolve(`cs_${++issued}`)
      return shared
    })
    const responses = await Promise.all(five.map((api) => api.fetch(URL)))
    expect(responses.map(({ status }) => status)).toEqual([200, 200, 200, 200, 200])
    expect(issued).toBe(2)
  })

  it('rejects with the error of getClientSecret, and makes no call', async () => {
    getClientSecret.mockRejectedValue(new Error('no session'))
    await expect(selfHosted().fetch(URL)).rejects.toThrow('no session')
    expect(fetchMock).not.toHaveBeenCalled()
  })
})

describe('onMessage', () => {
  const json = (body: unknown) => JSON.stringify(body)

  it.each([
    ['a new conversation', HELLO, ['Hello']],
    [
      'the next message, with a tag in it',
      json({
        type: 'threads.add_user_message',
        params: {
          input: {
            content: [
              { type: 'input_text', text: 'Ask ' },
              { type: 'input_tag', text: '@Ada', id: 'ada' },
            ],
          },
        },
      }),
      ['Ask @Ada'],
    ],
    ['a request for the history', json({ type: 'threads.list', params: {} }), []],
    ['a message of attachments only', json({ type: 'threads.create', params: { input: { content: [] } } }), []],
    ['not JSON', 'file bytes', []],
    ['an unexpected shape', json({ type: 'threads.create' }), []],
  ])('%s', async (_, body, expected) => {
    const onMessage = vi.fn()
    await selfHosted(onMessage).fetch(URL, { method: 'POST', body })
    expect(onMessage.mock.calls.map(([message]) => message)).toEqual(expected)
  })

  it('is called once for a repeated message, and not for a rejected one', async () => {
    const onMessage = vi.fn()
    fetchMock.mockResolvedValueOnce(rejection('client_secret_expired'))
    await selfHosted(onMessage).fetch(URL, { method: 'POST', body: HELLO })
    expect(onMessage).toHaveBeenCalledTimes(1)
    fetchMock.mockResolvedValueOnce(new Response('{}', { status: 503 }))
    await selfHosted(onMessage).fetch(URL, { method: 'POST', body: HELLO })
    expect(onMessage).toHaveBeenCalledTimes(1)
  })
})

describe('a call to another server', () => {
  const upload = { method: 'PUT', headers: { 'Content-Type': 'image/png' }, body: 'bytes' }

  it('does not get the secret', async () => {
    const { fetch } = selfHosted()
    await fetch('https://files.example.com/1', upload)
    const request = new Request('https://files.example.com/2', upload)
    await fetch(request)
    expect(fetchMock.mock.calls).toEqual([
      ['https://files.example.com/1', upload],
      [request, undefined],
    ])
  })

  it('is told from an upload to the service', async () => {
    await selfHosted().fetch('http://localhost:8000/api/chatkit/attachments/atc_1?token=t', upload)
    expect(authorizations()).toEqual(['Bearer cs_1'])
  })
})

describe('onFailure', () => {
  let failures: (ServiceError | null)[]
  const callOnce = async (response: Response | Error, body = HELLO) => {
    failures = []
    fetchMock.mockImplementationOnce(() => (response instanceof Error ? Promise.reject(response) : Promise.resolve(response)))
    const call = selfHosted(undefined, (error) => failures.push(error)).fetch(URL, { method: 'POST', body })
    return call.then((answer) => answer.text()).catch((error: Error) => error.message)
  }
  const errorResponse = (status: number, code: string, message: string) =>
    new Response(JSON.stringify({ status: 'error', message, code }), { status })
  const stream = (...chunks: (string | Error)[]) => {
    const bytes = new TextEncoder()
    const body = new ReadableStream({
      pull(controller) {
        const chunk = chunks.shift()
        if (chunk === undefined) controller.close()
        else if (chunk instanceof Error) controller.error(chunk)
        else controller.enqueue(bytes.encode(chunk))
      },
    })
    return new Response(body, { headers: { 'Content-Type': 'text/event-stream; charset=utf-8' } })
  }

  it.each([
    [404, 'not_found', 'Not found', 'Not found'],
    [403, 'attachments_off', 'This chat takes no attachments', 'This chat takes no attachments'],
    [429, 'request_refused', 'Please try again tomorrow', 'Please try again tomorrow'],
    [413, 'request_entity_too_large', 'Request entity too large', 'This message is too long. Please shorten it.'],
    [429, 'too_many_requests', '…', 'Too many requests. Please try again in a moment.'],
    [500, 'internal_server_error', '…', 'Service temporarily down. Please try again.'],
    [503, 'database_unavailable', '…', 'Service temporarily down. Please try again.'],
  ])('%i %s', async (status, code, message, userMessage) => {
    await callOnce(errorResponse(status, code, message))
    expect(failures).toEqual([expect.objectContaining({ status, code, message, userMessage, threadId: undefined })])
  })

  it('a proxy that answers HTML', async () => {
    expect(await callOnce(new Response('<html>', { status: 404, statusText: 'Not Found' }))).toBe('<html>')
    expect(failures).toEqual([
      expect.objectContaining({
        message: 'The chat request failed: Not Found',
        userMessage: 'Something went wrong. Please try again.',
      }),
    ])
  })

  it('no network', async () => {
    expect(await callOnce(new TypeError('Failed to fetch'))).toBe('Failed to fetch')
    expect(failures[0]).toMatchObject({
      message: 'Failed to fetch',
      userMessage: 'Network connection lost. Please check your internet.',
    })
  })

  it('names the conversation that failed to load', async () => {
    const load = JSON.stringify({ type: 'threads.get_by_id', params: { thread_id: 'thr_1' } })
    await callOnce(errorResponse(503, 'database_unavailable', '…'), load)
    expect(failures[0]).toMatchObject({ status: 503, threadId: 'thr_1' })
    await callOnce(new TypeError('Failed to fetch'), load)
    expect(failures[0]).toMatchObject({ threadId: 'thr_1' })
  })

  it('ignores an aborted call', async () => {
    await callOnce(new DOMException('aborted', 'AbortError'))
    expect(failures).toEqual([])
  })

  it('is called with null after a success', async () => {
    await callOnce(new Response('{}'))
    expect(failures).toEqual([null])
  })

  it('an error event that is split into two chunks', async () => {
    const whole =
      'data: {"type":"progress_update"}\n\ndata: {"type":"error","code":"custom","message":"Zu spät","allow_retry":true}\n\n'
    const cut = whole.indexOf('custom')
    expect(await callOnce(stream(whole.slice(0, cut), whole.slice(cut)))).toBe(whole)
    expect(failures).toEqual([null, expect.objectContaining({ code: 'custom', message: 'Zu spät', userMessage: 'Zu spät' })])
  })

  it('an error event without a message', async () => {
    await callOnce(stream('data: {"type":"error","code":"stream.error","allow_retry":true}\n\n'))
    expect(failures[1]).toMatchObject({
      message: 'The response failed: stream.error',
      userMessage: 'Something went wrong. Please try again.',
    })
  })

  it('a broken stream', async () => {
    await callOnce(stream('data: {"type":"progress_update"}\n\n', new TypeError('network error')))
    expect(failures[1]).toMatchObject({
      message: 'network error',
      userMessage: 'Network connection lost. Please check your internet.',
    })
  })

  it('ignores a stream that its reader cancels, and cancels the call', async () => {
    const cancelled = vi.fn()
    const body = new ReadableStream({ cancel: cancelled })
    failures = []
    fetchMock.mockResolvedValueOnce(new Response(body, { headers: { 'Content-Type': 'text/event-stream' } }))
    const response = await selfHosted(undefined, (error) => failures.push(error)).fetch(URL, { method: 'POST', body: HELLO })
    await response.body!.cancel('reason')
    expect(cancelled).toHaveBeenCalledExactlyOnceWith('reason')
    expect(failures).toEqual([null])
  })
})

it.each([
  [undefined, { colorScheme: 'light' }],
  [{ darkMode: true }, { colorScheme: 'dark' }],
  [
    { primaryColor: '#0070f3', darkMode: false },
    { colorScheme: 'light', color: { accent: { primary: '#0070f3', level: 2 } } },
  ],
] as const)('the theme %j in ChatKit’s terms', (theme, expected) => {
  expect(chatKitTheme(theme)).toEqual(expected)
})
