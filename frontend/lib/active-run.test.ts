import type { CustomApiConfig } from '@openai/chatkit'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { RunFollower, type RunStatus } from './active-run'
import { chatKitApi } from './chatkit-options'
import { ServiceError } from './errors'
import { PageSession } from './page-session'
import { setService } from './service'

const URL = 'http://localhost:8000/api/chatkit'
const HELLO = JSON.stringify({
  type: 'threads.add_user_message',
  params: { thread_id: 'thr_1', input: { content: [{ type: 'input_text', text: 'Hello' }] } },
})
const CREATED = 'data: {"type":"thread.created","thread":{"id":"thr_new"}}\n\n'

let answers: Record<string, (() => Response | Promise<Response>)[]>
let calls: [method: string, path: string, headers: Headers, body: unknown][]
let statuses: (RunStatus | null)[]
let updates: ReturnType<typeof vi.fn<() => Promise<void>>>
let failures: (ServiceError | null)[]
let runs: RunFollower
let secrets: number
let secret: () => Promise<string>

/** Answer the calls of `method` and `path` with each of `responses`, and repeat the last. */
function answer(call: string, ...responses: (() => Response | Promise<Response>)[]) {
  answers[call] = responses
}

const json = (data: unknown, status = 200) => new Response(JSON.stringify(data), { status })
const state = (status: RunStatus | null) => () => json({ status: 'success', data: status && { id: 'run_1', status } })
const lost = () => Promise.reject(new TypeError('Failed to fetch'))

/** An event stream of `chunks`, which ends with an error or stays open. */
function stream(...chunks: (string | Error)[]) {
  const bytes = new TextEncoder()
  const cancelled = vi.fn()
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      const chunk = chunks.shift()
      if (chunk instanceof Error) controller.error(chunk)
      else if (chunk === 'end') controller.close()
      else if (chunk !== undefined) controller.enqueue(bytes.encode(chunk))
      else return new Promise(() => {})
    },
    cancel: cancelled,
  })
  const headers = { 'Content-Type': 'text/event-stream', 'ChatKit-Run': 'run_1' }
  return { cancelled, respond: () => new Response(body, { headers }) }
}

function called(method: string) {
  return calls.filter(([used]) => used === method).map(([, path]) => path)
}

function send(body = HELLO, signal?: AbortSignal) {
  const session = PageSession.of(getClientSecret)
  const api = chatKitApi(session, { onFailure: (failure) => failures.push(failure), runs }) as CustomApiConfig
  return api.fetch!(URL, { method: 'POST', body, signal })
}

let getClientSecret: (existing?: string | null) => Promise<string>

beforeEach(() => {
  vi.useFakeTimers()
  vi.spyOn(console, 'error').mockImplementation(() => {})
  setService({ domainKey: 'local-dev' })
  answers = {}
  calls = []
  statuses = []
  failures = []
  secrets = 0
  secret = async () => `cs_${++secrets}`
  getClientSecret = async (existing) => existing || secret()
  updates = vi.fn(async () => {})
  vi.stubGlobal(
    'fetch',
    vi.fn(async (input: string, init: RequestInit) => {
      const path = input.slice(URL.length)
      calls.push([init.method!, path, new Headers(init.headers), init.body && JSON.parse(init.body as string)])
      const left = answers[`${init.method} ${path}`]!
      return (left.length > 1 ? left.shift()! : left[0]!)()
    }),
  )
  runs = new RunFollower(PageSession.of(getClientSecret), (status) => statuses.push(status))
  runs.connect(updates)
})

afterEach(() => {
  vi.useRealTimers()
  vi.unstubAllGlobals()
  setService({})
})

describe('a conversation with an active run', () => {
  const load = () => send(JSON.stringify({ type: 'threads.get_by_id', params: { thread_id: 'thr_1' } }))

  it('is updated each second at first, until the run has ended, and then once more', async () => {
    answer('GET /threads/thr_1/run', state('active'), state('active'), state('active'), state(null))
    answer('POST ', () => json({}))
    await load()
    expect(calls.map(([method]) => method)).toEqual(['GET', 'POST']) // so that no end of the run can be missed
    expect(statuses).toEqual(['active'])
    await vi.advanceTimersByTimeAsync(2_500)
    expect(updates).toHaveBeenCalledTimes(2)
    await vi.advanceTimersByTimeAsync(600)
    expect(updates).toHaveBeenCalledTimes(3)
    expect(statuses.at(-1)).toBeNull()
    await vi.advanceTimersByTimeAsync(60_000)
    expect(updates).toHaveBeenCalledTimes(3)
  })

  it('asks for each update once, although the update loads the conversation', async () => {
    answer('GET /threads/thr_1/run', state('active'))
    answer('POST ', () => json({}))
    updates.mockImplementation(async () => void (await load()))
    await load()
    await vi.advanceTimersByTimeAsync(3_100)
    expect([called('GET').length, called('POST').length]).toEqual([4, 4])
  })

  it('is nothing to follow without one', async () => {
    answer('GET /threads/thr_1/run', state(null))
    answer('POST ', () => json({}))
    await load()
    await vi.advanceTimersByTimeAsync(60_000)
    expect(statuses).toEqual([])
    expect(updates).not.toHaveBeenCalled()
  })

  it.each([
    ['another conversation is shown', () => runs.show('thr_2')],
    ['a new conversation is shown', () => runs.show(null)],
    ['the chat is removed', () => runs.dispose()],
  ])('is not followed any more when %s', async (_, leave) => {
    answer('GET /threads/thr_1/run', state('active'))
    answer('POST ', () => json({}))
    await load()
    runs.show('thr_1')
    await vi.advanceTimersByTimeAsync(1_100)
    leave()
    await vi.advanceTimersByTimeAsync(5_000)
    expect(updates).toHaveBeenCalledTimes(1)
    expect(statuses.at(-1)).toBeNull()
  })

  it('is not followed any more when a message is sent', async () => {
    answer('GET /threads/thr_1/run', state('active'))
    answer('POST ', () => json({}), stream('data: {}\n\n', 'end').respond)
    await load()
    await (await send()).text()
    await vi.advanceTimersByTimeAsync(5_000)
    expect(updates).not.toHaveBeenCalled()
    expect(statuses).toEqual(['active', null])
  })

  it.each([
    ['refused', () => json({ code: 'too_many_requests' }, 429)],
    ['lost', lost],
  ])('is still followed when a message is %s', async (_, failing) => {
    answer('GET /threads/thr_1/run', state('active'))
    answer('POST ', () => json({}), failing)
    await load()
    await send().catch(() => {})
    await vi.advanceTimersByTimeAsync(1_100)
    expect(statuses).toEqual(['active', null, 'active', 'active'])
    expect(updates).toHaveBeenCalledTimes(2)
  })

  it('is still followed when an action is sent', async () => {
    answer('GET /threads/thr_1/run', state('active'), state(null))
    answer('POST ', () => json({}), stream('data: {}\n\n', 'end').respond)
    await load()
    const action = { type: 'threads.custom_action', params: { thread_id: 'thr_1', action: { type: 'press' } } }
    await (await send(JSON.stringify(action))).text()
    expect(statuses).toEqual(['active'])
    await vi.advanceTimersByTimeAsync(1_100)
    expect(statuses).toEqual(['active', null])
  })

  it('is followed when the service is back', async () => {
    answer('GET /threads/thr_1/run', state('active'), lost, lost, () => json({}, 503), state('active'), state(null))
    answer('POST ', () => json({}))
    await load()
    await vi.advanceTimersByTimeAsync(1_000)
    expect(statuses).toEqual(['active', 'unreachable'])
    await vi.advanceTimersByTimeAsync(1_000 + 2_000 + 4_000)
    expect(statuses.at(-1)).toBe('active')
    await vi.advanceTimersByTimeAsync(1_000)
    expect([statuses.at(-1), updates.mock.calls.length]).toEqual([null, 2])
  })

  it('is updated less often the longer it takes', async () => {
    answer('GET /threads/thr_1/run', state('active'))
    answer('POST ', () => json({}))
    await load()
    const perMinute = []
    for (let minute = 0; minute < 3; minute++) {
      await vi.advanceTimersByTimeAsync(60_000)
      perMinute.push(updates.mock.calls.length)
      updates.mockClear()
    }
    expect(perMinute).toEqual([21, 12, 12])
  })

  it('is asked for later if there were too many requests', async () => {
    const busy = () => new Response('{}', { status: 429, headers: { 'Retry-After': '20' } })
    answer('GET /threads/thr_1/run', state('active'), busy, state(null))
    answer('POST ', () => json({}))
    await load()
    await vi.advanceTimersByTimeAsync(1_000 + 19_000)
    expect(called('GET')).toHaveLength(2)
    expect(statuses).toEqual(['active'])
    await vi.advanceTimersByTimeAsync(1_000)
    expect(statuses).toEqual(['active', null])
  })

  it('gets the last update even if the first attempt fails', async () => {
    answer('GET /threads/thr_1/run', state('active'), state(null))
    answer('POST ', () => json({}))
    updates.mockRejectedValueOnce(new Error('no network'))
    await load()
    await vi.advanceTimersByTimeAsync(2_100)
    expect(updates).toHaveBeenCalledTimes(2)
    expect(statuses.at(-1)).toBeNull()
  })

  it.each([
    ['the conversation was deleted', 404, 'not_found', 1],
    ['a new secret is rejected as well', 401, 'client_secret_expired', 0],
  ])('is not followed any more when %s', async (_, status, code, lastUpdates) => {
    answer('GET /threads/thr_1/run', state('active'), () => json({ code }, status))
    answer('POST ', () => json({}))
    await load()
    updates.mockRejectedValue(new Error('threads.get_by_id failed'))
    await vi.advanceTimersByTimeAsync(1_000)
    const { length } = calls
    await vi.advanceTimersByTimeAsync(60_000)
    expect(calls).toHaveLength(length)
    expect(statuses).toEqual(['active', null])
    expect(updates).toHaveBeenCalledTimes(lastUpdates)
  })

  it('is not followed any more when the user has signed out', async () => {
    answer('GET /threads/thr_1/run', state('active'))
    answer('POST ', () => json({}))
    await load()
    PageSession.of(getClientSecret).invalidate()
    secret = () => Promise.reject(new ServiceError('Authentication required', '…', { status: 401 }))
    await vi.advanceTimersByTimeAsync(60_000)
    expect(called('GET')).toHaveLength(1)
    expect(statuses).toEqual(['active', null])
  })

  it('was deleted: there is nothing to follow', async () => {
    answer('GET /threads/thr_1/run', () => json({ code: 'not_found' }, 404))
    answer('POST ', () => json({ code: 'not_found' }, 404))
    expect((await load()).status).toBe(404)
    expect(statuses).toEqual([])
  })

  it('is asked for with a new secret if the old one is rejected', async () => {
    answer('GET /threads/thr_1/run', () => json({ code: 'client_secret_expired' }, 401), state('active'))
    answer('POST ', () => json({}))
    await load()
    expect(calls.map(([, , headers]) => headers.get('Authorization'))).toEqual(['Bearer cs_1', 'Bearer cs_2', 'Bearer cs_2'])
    expect(statuses).toEqual(['active'])
  })
})

describe('a stop by the user', () => {
  it('is told to the service, and ends the stream', async () => {
    const { respond, cancelled } = stream('data: {}\n\n')
    answer('POST ', respond)
    answer('DELETE /runs/run_1', () => json({}))
    const stop = new AbortController()
    const response = await send(HELLO, stop.signal)
    expect(calls[0]![2].get('ChatKit-On-Disconnect')).toBe('continue')
    const reading = response.text()
    await Promise.resolve()
    stop.abort()
    await expect(reading).rejects.toMatchObject({ name: 'AbortError' })
    await vi.advanceTimersByTimeAsync(0)
    expect(called('DELETE')).toEqual(['/runs/run_1'])
    expect(cancelled).toHaveBeenCalledOnce()
    expect(failures).toEqual([null])
    await vi.advanceTimersByTimeAsync(60_000)
    expect(called('GET')).toEqual([])
  })

  it('by cancelling the body', async () => {
    answer('POST ', stream('data: {}\n\n').respond)
    answer('DELETE /runs/run_1', () => json({}, 404))
    const response = await send()
    await response.body!.cancel()
    await vi.advanceTimersByTimeAsync(0)
    expect(called('DELETE')).toEqual(['/runs/run_1'])
    expect(console.error).not.toHaveBeenCalled()
  })

  it('before the response has come: the call ends at once, and the run when its id is known', async () => {
    let respond = (_: Response) => {}
    const { respond: late, cancelled } = stream('data: {}\n\n')
    answer('POST ', () => new Promise((resolve) => (respond = resolve)))
    answer('DELETE /runs/run_1', () => json({}))
    const stop = new AbortController()
    const sending = send(HELLO, stop.signal)
    await vi.advanceTimersByTimeAsync(0)
    stop.abort()
    await expect(sending).rejects.toMatchObject({ name: 'AbortError' })
    expect(called('DELETE')).toEqual([])
    respond(late())
    await vi.advanceTimersByTimeAsync(0)
    expect(called('DELETE')).toEqual(['/runs/run_1'])
    expect(cancelled).toHaveBeenCalledOnce()
  })

  it('after the end is not told', async () => {
    answer('POST ', stream('data: {}\n\n', 'end').respond)
    const stop = new AbortController()
    await (await send(HELLO, stop.signal)).text()
    stop.abort()
    await vi.advanceTimersByTimeAsync(0)
    expect(called('DELETE')).toEqual([])
  })

  /** Send a message, and stop the response once it has begun. */
  async function stopResponse(body = HELLO) {
    answer('POST ', stream(CREATED).respond)
    const stop = new AbortController()
    const reader = (await send(body, stop.signal)).body!.getReader()
    await reader.read()
    stop.abort()
    await vi.advanceTimersByTimeAsync(0)
  }

  it('is repeated if it fails, and not before the service allows it', async () => {
    const busy = () => new Response('{}', { status: 429, headers: { 'Retry-After': '20' } })
    answer(
      'DELETE /runs/run_1',
      lost,
      busy,
      () => json({}, 503),
      () => json({}),
    )
    await stopResponse()
    await vi.advanceTimersByTimeAsync(1_000)
    expect(called('DELETE')).toHaveLength(2)
    await vi.advanceTimersByTimeAsync(19_000)
    expect(called('DELETE')).toHaveLength(2)
    await vi.advanceTimersByTimeAsync(1_000 + 4_000)
    expect(called('DELETE')).toHaveLength(4)
    await vi.advanceTimersByTimeAsync(60_000)
    expect(statuses).toEqual([])
    expect(console.error).not.toHaveBeenCalled()
  })

  it.each([
    ['four times', lost, 4],
    ['for good', () => json({}, 500), 1],
  ])('that fails %s is shown, and the response followed to its end', async (_, failing, attempts) => {
    answer('DELETE /runs/run_1', failing)
    answer('GET /threads/thr_1/run', state('active'), state(null))
    await stopResponse()
    await vi.advanceTimersByTimeAsync(1_000 + 2_000 + 4_000)
    expect(called('DELETE')).toHaveLength(attempts)
    await vi.advanceTimersByTimeAsync(2_000)
    expect(statuses).toEqual(['not_stopped', 'not_stopped', null])
    expect(updates).toHaveBeenCalledTimes(2)
    expect(console.error).toHaveBeenCalledOnce()
  })

  it('that fails is shown in a conversation whose id is not known as well, until a message is sent', async () => {
    answer('POST ', () => Promise.resolve(stream(CREATED).respond()))
    answer('DELETE /runs/run_1', () => json({}, 500))
    const stop = new AbortController()
    const create = JSON.stringify({ type: 'threads.create', params: { input: { content: [] } } })
    const sending = send(create, stop.signal)
    stop.abort()
    await expect(sending).rejects.toMatchObject({ name: 'AbortError' })
    await vi.advanceTimersByTimeAsync(60_000)
    expect([statuses, called('GET')]).toEqual([['not_stopped'], []])
    answer('POST ', stream(CREATED).respond)
    await send(create)
    expect(statuses).toEqual(['not_stopped', null])
  })

  it('that fails is not shown in another conversation', async () => {
    answer('DELETE /runs/run_1', lost)
    await stopResponse()
    runs.show('thr_2')
    await vi.advanceTimersByTimeAsync(60_000)
    expect([statuses, called('GET')]).toEqual([[], []])
  })
})

describe('a stop of a run that is followed', () => {
  beforeEach(async () => {
    answer('GET /threads/thr_1/run', state('active'))
    answer('POST ', () => json({}))
    await send(JSON.stringify({ type: 'threads.get_by_id', params: { thread_id: 'thr_1' } }))
    await vi.advanceTimersByTimeAsync(1_100)
    updates.mockClear()
  })

  it.each([
    ['is stopped', () => json({})],
    ['has just ended', () => json({}, 404)],
  ])('updates the chat once when the run %s', async (_, response) => {
    answer('DELETE /runs/run_1', response)
    answer('GET /threads/thr_1/run', state(null))
    await runs.stop()
    expect(statuses).toEqual(['active', 'active', null])
    await vi.advanceTimersByTimeAsync(60_000)
    expect([called('DELETE'), updates.mock.calls.length]).toEqual([['/runs/run_1'], 1])
    expect(statuses.at(-1)).toBeNull()
  })

  it('that fails is shown while the run goes on, and can be repeated', async () => {
    answer(
      'DELETE /runs/run_1',
      () => json({}, 500),
      () => json({}),
    )
    await runs.stop()
    expect(statuses.at(-1)).toBe('not_stopped')
    await vi.advanceTimersByTimeAsync(5_000)
    expect(statuses.at(-1)).toBe('not_stopped')
    answer('GET /threads/thr_1/run', state(null))
    await runs.stop()
    expect(statuses.at(-1)).toBeNull()
  })

  it('is sent once at a time', async () => {
    answer('DELETE /runs/run_1', () => json({}))
    await Promise.all([runs.stop(), runs.stop()])
    expect(called('DELETE')).toHaveLength(1)
  })

  it('is not possible any more when it has ended', async () => {
    answer('GET /threads/thr_1/run', state(null))
    await vi.advanceTimersByTimeAsync(5_000)
    await runs.stop()
    expect(called('DELETE')).toEqual([])
  })
})

describe('a connection that is cut', () => {
  it('is no error: the run is followed', async () => {
    answer('POST ', stream('data: {"type":"progress_update"}\n\n', new TypeError('network error')).respond)
    answer('GET /threads/thr_1/run', state('active'), state(null))
    expect(await (await send()).text()).toContain('progress_update')
    await vi.advanceTimersByTimeAsync(1_100)
    expect(failures).toEqual([null])
    expect(statuses).toEqual(['active', null])
    expect(updates).toHaveBeenCalledTimes(2)
  })

  it('in a new conversation, whose id the stream has told in two chunks', async () => {
    const chunks = [CREATED.slice(0, 30), CREATED.slice(30), new TypeError('network error')]
    answer('POST ', stream(...chunks).respond)
    answer('GET /threads/thr_new/run', state(null))
    await (await send(JSON.stringify({ type: 'threads.create', params: { input: { content: [] } } }))).text()
    await vi.advanceTimersByTimeAsync(0)
    expect(called('GET')).toEqual(['/threads/thr_new/run'])
    expect(updates).toHaveBeenCalledTimes(1)
  })

  describe('before the response has come', () => {
    beforeEach(() => answer('POST ', lost))

    it('is no error if the turn has begun a run, which is followed', async () => {
      answer('GET /threads/thr_1/run', state('active'), state('active'), state(null))
      const response = await send()
      expect([response.status, response.headers.get('Content-Type'), await response.text()]).toEqual([
        200,
        'text/event-stream',
        '',
      ])
      expect(failures.at(-1)).toBeNull()
      await vi.advanceTimersByTimeAsync(1_100)
      expect(statuses).toEqual(['active', null])
      expect([updates.mock.calls.length, called('POST').length]).toEqual([2, 1])
    })

    it.each([
      ['has not begun a run', state(null)],
      ['can’t be looked up', () => json({}, 503)],
    ])('is an error if the turn %s, and the conversation is updated', async (_, found) => {
      answer('GET /threads/thr_1/run', found, lost, state(null))
      await expect(send()).rejects.toThrow('Failed to fetch')
      expect(failures).toHaveLength(1)
      await vi.advanceTimersByTimeAsync(1_100)
      expect(updates).toHaveBeenCalledOnce()
      expect(statuses).toEqual([null]) // the error is shown
    })

    it('is an error if the run was there before', async () => {
      answer('GET /threads/thr_1/run', state('active'))
      answer('POST ', () => json({}), lost)
      await send(JSON.stringify({ type: 'threads.get_by_id', params: { thread_id: 'thr_1' } }))
      await expect(send()).rejects.toThrow('Failed to fetch')
    })

    it('and a stop meanwhile: the run is stopped', async () => {
      answer('GET /threads/thr_1/run', state('active'))
      answer('DELETE /runs/run_1', () => json({}))
      const stop = new AbortController()
      const sending = send(HELLO, stop.signal)
      stop.abort()
      await expect(sending).rejects.toMatchObject({ name: 'AbortError' })
      await vi.advanceTimersByTimeAsync(0)
      expect(called('DELETE')).toEqual(['/runs/run_1'])
    })
  })

  it('without an error is noticed after a silence of 30 seconds', async () => {
    let comment = () => {}
    const cancelled = vi.fn()
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => void (comment = () => controller.enqueue(new TextEncoder().encode(': keep-alive\n\n'))),
      cancel: cancelled,
    })
    const headers = { 'Content-Type': 'text/event-stream', 'ChatKit-Run': 'run_1' }
    answer('POST ', () => new Response(body, { headers }))
    answer('GET /threads/thr_1/run', state(null))
    const reading = (await send()).text()
    for (let times = 0; times < 2; times++) {
      await vi.advanceTimersByTimeAsync(29_000)
      comment()
    }
    await vi.advanceTimersByTimeAsync(29_000)
    expect(cancelled).not.toHaveBeenCalled()
    await vi.advanceTimersByTimeAsync(1_000)
    expect(cancelled).toHaveBeenCalledOnce()
    expect(await reading).toContain('keep-alive')
    await vi.advanceTimersByTimeAsync(1)
    expect([called('GET').length, called('DELETE').length, updates.mock.calls.length]).toEqual([1, 0, 1])
    expect(failures).toEqual([null])
  })

  it('in another conversation than the one that is shown is not followed', async () => {
    answer('POST ', stream('data: {}\n\n', new TypeError('network error')).respond)
    runs.show('thr_2')
    await (await send()).text()
    await vi.advanceTimersByTimeAsync(60_000)
    expect(called('GET')).toEqual([])
  })

  it('after the chat was removed is not followed, but after it was drawn again', async () => {
    answer('GET /threads/thr_1/run', state('active'))
    runs.dispose()
    for (const expected of [0, 1]) {
      answer('POST ', stream('data: {}\n\n', new TypeError('network error')).respond)
      await (await send()).text()
      await vi.advanceTimersByTimeAsync(0)
      expect([called('GET').length, updates.mock.calls.length]).toEqual([expected, expected])
      runs.connect(updates)
    }
  })

  it('before the conversation is known is an error', async () => {
    answer('POST ', stream('data: {"type":', new TypeError('network error')).respond)
    const response = await send(JSON.stringify({ type: 'threads.create', params: { input: { content: [] } } }))
    await expect(response.text()).rejects.toThrow('network error')
    expect(failures[1]).toMatchObject({ message: 'network error' })
  })
})

describe('an interrupted run', () => {
  const load = () => send(JSON.stringify({ type: 'threads.get_by_id', params: { thread_id: 'thr_1' } }))

  beforeEach(async () => {
    answer('GET /threads/thr_1/run', state('interrupted'))
    answer('POST ', () => json({}))
    await load()
  })

  it('is shown, and not followed', async () => {
    await vi.advanceTimersByTimeAsync(60_000)
    expect(statuses).toEqual(['interrupted'])
    expect(updates).not.toHaveBeenCalled()
  })

  it('can be retried: the last message is answered again, and the new run followed', async () => {
    const { respond, cancelled } = stream('data: {}\n\n')
    const items = [
      { id: 'msg_3', type: 'assistant_message' },
      { id: 'msg_2', type: 'user_message' },
      { id: 'msg_1', type: 'user_message' },
    ]
    answer('POST ', () => json({ data: items }), respond)
    answer('GET /threads/thr_1/run', state('active'), state(null))
    await runs.retry()
    const [, , headers, body] = calls.at(-1)!
    expect(body).toEqual({ type: 'threads.retry_after_item', params: { thread_id: 'thr_1', item_id: 'msg_2' } })
    expect(headers.get('ChatKit-On-Disconnect')).toBe('continue')
    await vi.advanceTimersByTimeAsync(1_100)
    expect(cancelled).toHaveBeenCalledOnce()
    expect(called('DELETE')).toEqual([])
    expect(statuses.slice(-2)).toEqual(['active', null])
  })

  it.each([
    ['can’t be sent', lost],
    ['is refused', () => json({}, 429)],
  ])('can be retried later if that %s, which is shown', async (_, failing) => {
    answer('POST ', failing)
    await runs.retry()
    expect(statuses).toEqual(['interrupted', 'not_repeated'])
    expect(console.error).toHaveBeenCalledOnce()
    answer('POST ', () => json({ data: [{ id: 'msg_1', type: 'user_message' }] }))
    answer('GET /threads/thr_1/run', state('active'))
    await runs.retry()
    await vi.advanceTimersByTimeAsync(0)
    expect(statuses.at(-1)).toBe('active')
  })

  it('is looked up again when the conversation is loaded again', async () => {
    answer('GET /threads/thr_1/run', state(null))
    await load()
    expect(statuses).toEqual(['interrupted', null])
  })
})
