// @vitest-environment jsdom
import {
  ChatKit,
  type ChatKitEvents,
  type ChatKitOptions,
  type CustomApiConfig,
  type HostedApiConfig,
} from '@openai/chatkit-react'
import { act, cleanup, render, renderHook } from '@testing-library/react'
import { StrictMode, useEffect } from 'react'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { COMPONENT_TIMEOUT_MS, ComponentError, loadChatKit } from './chatkit-component'
import type { ChatKitConfig } from './chatkit-config'
import { setService } from './service'
import { type Chat, useChatKit } from './use-chatkit'

vi.mock('./chatkit-component', async (original) => {
  const module = await original<typeof import('./chatkit-component')>()
  return { ...module, loadChatKit: vi.fn(module.loadChatKit) }
})

/** The part of the component that the hook uses. The browser tests have a more complete stand-in. */
class Component extends HTMLElement {
  options: ChatKitOptions[] = []
  sendUserMessage = vi.fn(async () => {})

  setOptions(options: ChatKitOptions) {
    this.options.push(options)
  }

  emit<K extends keyof ChatKitEvents>(name: K, detail?: unknown) {
    act(() => void this.dispatchEvent(new CustomEvent(name, { detail })))
  }
}

const HELLO = JSON.stringify({
  type: 'threads.create',
  params: { input: { content: [{ type: 'input_text', text: 'Hello' }] } },
})

let getClientSecret: ReturnType<typeof vi.fn<ChatKitConfig['api']['getClientSecret']>>
let last: Chat

function component(): Component {
  return document.querySelector<Component>('openai-chatkit')!
}

/** `useChatKit`, whose latest result is kept in `last`. */
function useObserved(...parameters: Parameters<typeof useChatKit>): Chat {
  const result = useChatKit(...parameters)
  useEffect(() => {
    last = result
  })
  return result
}

function TestChat({ config, more }: { config: ChatKitConfig; more?: Parameters<typeof useChatKit>[1] }) {
  const { chat, isReady } = useObserved(config, more)
  return <ChatKit control={chat.control} data-ready={isReady} />
}

async function renderChat(config: Partial<ChatKitConfig> = {}, more?: Parameters<typeof useChatKit>[1]) {
  const whole = { api: { getClientSecret }, ...config }
  const view = render(<TestChat config={whole} more={more} />)
  await act(async () => {})
  return view
}

beforeEach(() => {
  setService({})
  vi.spyOn(console, 'error').mockImplementation(() => {})
  if (!customElements.get('openai-chatkit')) customElements.define('openai-chatkit', Component)
  getClientSecret = vi.fn(async (existing?: string | null) => existing || 'cs_1')
})

afterEach(() => {
  cleanup()
  vi.useRealTimers()
  vi.unstubAllGlobals()
})

describe('isReady', () => {
  it('is true with a session and a ready component', async () => {
    await renderChat()
    expect(last.isReady).toBe(false)
    component().emit('chatkit.ready')
    expect(last).toMatchObject({ isReady: true, error: null })
  })

  it('waits for the session', async () => {
    let resolveSecret: (secret: string) => void = () => {}
    getClientSecret.mockReturnValue(new Promise((resolve) => (resolveSecret = resolve)))
    await renderChat()
    component().emit('chatkit.ready')
    expect(last.isReady).toBe(false)
    await act(async () => resolveSecret('cs_1'))
    expect(last.isReady).toBe(true)
  })
})

describe('the options for ChatKit', () => {
  it('hosted: getClientSecret only, which first returns the existing secret', async () => {
    await renderChat({ theme: { primaryColor: '#0070f3', darkMode: true } })
    const [options] = component().options
    expect(Object.keys(options!.api)).toEqual(['getClientSecret'])
    expect(options!.theme).toEqual({ colorScheme: 'dark', color: { accent: { primary: '#0070f3', level: 2 } } })
    expect(await (options!.api as HostedApiConfig).getClientSecret(null)).toBe('cs_1')
    expect(getClientSecret.mock.calls).toEqual([[undefined], ['cs_1']])
  })

  it('self-hosted: the URL, the domain key and fetch, without getClientSecret', async () => {
    setService({ domainKey: 'local-dev' })
    await renderChat()
    const [options] = component().options
    expect(options!.api).toEqual({
      url: 'http://localhost:8000/api/chatkit',
      domainKey: 'local-dev',
      fetch: expect.any(Function),
      uploadStrategy: { type: 'two_phase' },
    })
  })

  it('include those of the app', async () => {
    await renderChat({}, { initialThread: 'thr_1', composer: { placeholder: 'Ask' } })
    expect(component().options[0]).toMatchObject({ initialThread: 'thr_1', composer: { placeholder: 'Ask' } })
  })

  it('change with the theme, and only then', async () => {
    const config = { api: { getClientSecret }, theme: { darkMode: false } }
    const { rerender } = await renderChat(config)
    rerender(<TestChat config={{ ...config }} />)
    expect(component().options).toHaveLength(1)
    rerender(<TestChat config={{ ...config, theme: { darkMode: true } }} />)
    expect(component().options[1]!.theme).toEqual({ colorScheme: 'dark' })
  })

  it('include the handlers of the app', async () => {
    const heard = { onReady: vi.fn(), onResponseStart: vi.fn(), onThreadChange: vi.fn() }
    await renderChat({}, heard)
    component().emit('chatkit.ready')
    component().emit('chatkit.response.start')
    component().emit('chatkit.thread.change', { threadId: 'thr_1' })
    expect(Object.values(heard).map((handler) => handler.mock.calls.length)).toEqual([1, 1, 1])
    expect(heard.onThreadChange).toHaveBeenCalledWith({ threadId: 'thr_1' })
  })
})

it('strict mode and five chats share one session', async () => {
  let resolveSecret: (secret: string) => void = () => {}
  const shared = new Promise<string>((resolve) => (resolveSecret = resolve))
  const asked = vi.fn(() => shared)
  let pendingCall: Promise<string> | null = null
  const config = {
    api: { getClientSecret: (existing?: string | null) => (existing ? Promise.resolve(existing) : (pendingCall ||= asked())) },
  }
  render(
    <StrictMode>
      {[1, 2, 3, 4, 5].map((key) => (
        <TestChat key={key} config={config} />
      ))}
    </StrictMode>,
  )
  await act(async () => resolveSecret('cs_1'))
  const elements = [...document.querySelectorAll<Component>('openai-chatkit')]
  expect(elements).toHaveLength(5)
  pendingCall = null // a call without a secret would now create another session
  const secrets = await Promise.all(elements.map(({ options }) => (options[0]!.api as HostedApiConfig).getClientSecret(null)))
  expect(secrets).toEqual(Array(5).fill('cs_1'))
  expect(asked).toHaveBeenCalledTimes(1)
})

it('in strict mode too, a response that goes on is shown until the chat is removed', async () => {
  setService({ domainKey: 'local-dev' })
  const fetched = vi.fn(async (_url: string) => new Response('{"data":{"id":"run_1","status":"active"}}'))
  vi.stubGlobal('fetch', fetched)
  const { unmount } = render(<TestChat config={{ api: { getClientSecret } }} />, { wrapper: StrictMode })
  await act(async () => {})
  const api = component().options[0]!.api as CustomApiConfig
  const body = JSON.stringify({ type: 'threads.get_by_id', params: { thread_id: 'thr_1' } })
  await act(async () => void (await api.fetch!(api.url, { method: 'POST', body })))
  expect(last.runStatus).toBe('active')
  vi.useFakeTimers()
  unmount()
  fetched.mockClear()
  await api.fetch!(api.url, { method: 'POST', body })
  await vi.advanceTimersByTimeAsync(60_000)
  expect(fetched.mock.calls.filter(([url]) => url.endsWith('/run'))).toHaveLength(1) // looked up, and not followed
})

describe('error', () => {
  const refused = new Error('OpenAI authentication failed')

  it('of a session is reported once, and cleared by the next session', async () => {
    const onError = vi.fn()
    getClientSecret.mockRejectedValue(refused)
    await renderChat({ onError })
    component().emit('chatkit.ready')
    expect(last).toMatchObject({
      error: { message: 'Unable to start chat. Please try again.', cause: refused },
      isReady: false,
    })
    const { getClientSecret: asked } = component().options[0]!.api as HostedApiConfig
    await act(async () => void (await expect(asked(null)).rejects.toBe(refused)))
    component().emit('chatkit.error', { error: new Error('call failed') }) // the consequence in ChatKit
    expect(onError.mock.calls).toEqual([[refused]])
    getClientSecret.mockResolvedValue('cs_2')
    await act(async () => void (await asked(null)))
    expect(last).toMatchObject({ error: null, isReady: true })
  })

  it('is an Error whatever was thrown', async () => {
    getClientSecret.mockRejectedValue('plain text')
    await renderChat()
    expect(last.error?.cause).toEqual(new Error('plain text'))
  })

  it('of ChatKit is shown until the next response, and invalidates the secret of a hosted chat', async () => {
    const onError = vi.fn()
    await renderChat({ onError })
    component().emit('chatkit.ready')
    const broken = new Error('broken')
    component().emit('chatkit.error', { error: broken })
    expect(last).toMatchObject({ error: { message: 'Something went wrong. Please try again.', cause: broken }, isReady: true })
    expect(console.error).toHaveBeenCalledWith('ChatKit:', broken)
    expect(onError).toHaveBeenCalledExactlyOnceWith(broken)
    component().emit('chatkit.response.start')
    expect(last.error).toBeNull()
    getClientSecret.mockClear()
    await (component().options[0]!.api as HostedApiConfig).getClientSecret(null)
    expect(getClientSecret).toHaveBeenCalledWith(undefined)
  })

  it('a component that never becomes ready', async () => {
    vi.useFakeTimers()
    await renderChat()
    await act(async () => void vi.advanceTimersByTime(COMPONENT_TIMEOUT_MS))
    expect(last.error?.cause).toMatchObject({ code: 'not_ready' })
    expect(console.error).toHaveBeenCalledWith(
      'ChatKit:',
      expect.objectContaining({ message: expect.stringContaining('domain allowlist') }),
    )
    component().emit('chatkit.ready') // later than the timeout
    expect(last).toMatchObject({ error: null, isReady: true })
  })

  it('a component that removes itself', async () => {
    await renderChat()
    component().emit('chatkit.ready')
    expect(last.isReady).toBe(true)
    vi.useFakeTimers()
    const removed = component()
    const { parentNode } = removed
    await act(async () => removed.remove())
    expect(last).toMatchObject({ isReady: false, error: { cause: { code: 'removed' } } })
    await act(async () => void vi.advanceTimersByTime(COMPONENT_TIMEOUT_MS))
    act(
      () =>
        void removed.dispatchEvent(
          new CustomEvent('chatkit.error', { detail: { error: new Error('Domain verification failed') } }),
        ),
    )
    expect(last.error?.cause).toMatchObject({ code: 'removed' })
    parentNode!.append(removed) // for React to remove
  })

  it('unmounting the component is not one', async () => {
    const onError = vi.fn()
    const config = { api: { getClientSecret }, onError }
    function Drawer({ open }: { open: boolean }) {
      const { chat } = useObserved(config)
      return open && <ChatKit control={chat.control} />
    }
    const { rerender } = render(<Drawer open />)
    await act(async () => {})
    for (let times = 0; times < 2; times++) {
      component().emit('chatkit.ready')
      expect(last.isReady).toBe(true)
      vi.useFakeTimers()
      await act(async () => rerender(<Drawer open={false} />))
      await act(async () => void vi.advanceTimersByTime(COMPONENT_TIMEOUT_MS))
      expect(last).toMatchObject({ isReady: false, error: null })
      vi.useRealTimers()
      await act(async () => rerender(<Drawer open />))
    }
    expect(onError).not.toHaveBeenCalled()
    const again = component()
    const { parentNode } = again
    await act(async () => again.remove())
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ code: 'removed' }))
    parentNode!.append(again)
  })

  it('of a self-hosted chat is that of the failed call, not ChatKit’s own message', async () => {
    setService({ domainKey: 'local-dev' })
    const refusal = { status: 'error', message: 'Too many requests. Please try again in a moment.', code: 'too_many_requests' }
    vi.stubGlobal(
      'fetch',
      vi.fn(async () => new Response(JSON.stringify(refusal), { status: 429 })),
    )
    const onError = vi.fn()
    await renderChat({ onError })
    const api = component().options[0]!.api as CustomApiConfig
    await act(async () => void (await api.fetch!(api.url, { method: 'POST', body: '{}' })))
    expect(last.error).toBeNull()
    component().emit('chatkit.error', { error: new Error('threads.create was answered 429') })
    expect(last.error?.message).toBe(refusal.message)
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ status: 429, code: 'too_many_requests' }))
    component().emit('chatkit.error', { error: new Error('something else') })
    expect(last.error?.message).toBe('Something went wrong. Please try again.')
  })

  it('a script that fails to load', async () => {
    const blocked = new ComponentError('script_not_loaded', 'blocked')
    const onError = vi.fn()
    vi.mocked(loadChatKit).mockRejectedValueOnce(blocked)
    await renderChat({ onError })
    expect(last).toMatchObject({ error: { cause: blocked }, isReady: false })
    expect(onError).toHaveBeenCalledExactlyOnceWith(blocked)
  })

  it('a chat that is not rendered', () => {
    const { result } = renderHook(() => useChatKit({ api: { getClientSecret } }))
    expect(result.current.error?.cause.message).toContain('not rendered')
  })
})

describe('onMessage', () => {
  it('self-hosted: all messages', async () => {
    setService({ domainKey: 'local-dev' })
    vi.stubGlobal(
      'fetch',
      vi.fn(async () => new Response('{}')),
    )
    const onMessage = vi.fn()
    await renderChat({ onMessage })
    const api = component().options[0]!.api as CustomApiConfig
    const body = JSON.stringify({
      type: 'threads.create',
      params: { input: { content: [{ type: 'input_text', text: 'Hello' }] } },
    })
    await api.fetch!(api.url, { method: 'POST', body })
    await last.chat.sendUserMessage({ text: 'reported by fetch' })
    expect(onMessage.mock.calls).toEqual([['Hello']])
  })

  it('hosted: messages of the app', async () => {
    const onMessage = vi.fn()
    await renderChat({ onMessage })
    await last.chat.sendUserMessage({ text: 'Hello' })
    await last.chat.sendUserMessage({
      content: [
        { type: 'input_text', text: 'Hello, ' },
        { type: 'input_tag', text: '@Ada', id: 'ada' },
      ],
    })
    expect(component().sendUserMessage).toHaveBeenCalledTimes(2)
    expect(onMessage.mock.calls).toEqual([['Hello'], ['Hello, @Ada']])
  })

  it('hosted: not what was not sent, because the component is not rendered', async () => {
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {})
    const config = { api: { getClientSecret }, onMessage: vi.fn() }
    function Hidden() {
      useObserved(config)
      return null
    }
    render(<Hidden />)
    await act(async () => {})
    await last.chat.sendUserMessage({ text: 'Hello' })
    expect(config.onMessage).not.toHaveBeenCalled()
    expect(warn).toHaveBeenCalledWith('ChatKit element is not mounted')
  })
})

describe('a handler that changes while a call is pending', () => {
  /** Render with another handler during the call. Returns how often each handler was called. */
  async function change(name: 'onError' | 'onMessage', end: () => void, begin = () => {}) {
    const [first, second] = [vi.fn(), vi.fn()]
    const { rerender } = await renderChat({ [name]: first })
    await act(async () => begin())
    rerender(<TestChat config={{ api: { getClientSecret }, [name]: second }} />)
    await act(async () => end())
    return [first.mock.calls.length, second.mock.calls.length]
  }

  it('onError, of a session', async () => {
    let fail: (reason: Error) => void = () => {}
    getClientSecret.mockReturnValue(new Promise((_, reject) => (fail = reject)))
    expect(await change('onError', () => fail(new Error('refused')))).toEqual([0, 1])
  })

  it('onMessage, self-hosted', async () => {
    let respond: (response: Response) => void = () => {}
    setService({ domainKey: 'local-dev' })
    vi.stubGlobal('fetch', () => new Promise((resolve) => (respond = resolve)))
    const send = () => {
      const { url, fetch } = component().options[0]!.api as CustomApiConfig
      void fetch!(url, { method: 'POST', body: HELLO })
    }
    expect(await change('onMessage', () => respond(new Response('{}')), send)).toEqual([0, 1])
  })

  it('onMessage, hosted', async () => {
    let finish = () => {}
    const send = () => {
      component().sendUserMessage.mockReturnValue(new Promise((resolve) => (finish = resolve)))
      void last.chat.sendUserMessage({ text: 'Hello' })
    }
    expect(await change('onMessage', () => finish(), send)).toEqual([0, 1])
  })
})

describe('the composer', () => {
  const models = [{ id: 'gpt-best', label: 'Best' }]

  it('offers what the service lists, beside the options of the page', async () => {
    setService({ domainKey: 'local-dev' })
    vi.stubGlobal(
      'fetch',
      vi.fn(async () => new Response(JSON.stringify({ status: 'success', data: { models } }))),
    )
    await renderChat({}, { composer: { placeholder: 'Ask' } })
    expect(component().options.at(-1)?.composer).toEqual({ placeholder: 'Ask', models })
  })

  it.each([
    ['if the service has it', { placeholder: 'Ask' }, { placeholder: 'Ask', dictation: { enabled: true } }],
    ['unless the page has switched it off', { dictation: { enabled: false } }, { dictation: { enabled: false } }],
  ])('offers dictation %s', async (_when, own, expected) => {
    setService({ domainKey: 'local-dev' })
    const data = { dictation: { enabled: true } }
    vi.stubGlobal(
      'fetch',
      vi.fn(async () => new Response(JSON.stringify({ status: 'success', data }))),
    )
    await renderChat({}, { composer: own })
    expect(component().options.at(-1)?.composer).toEqual(expected)
  })

  it('is the page’s own in a hosted chat', async () => {
    await renderChat({}, { composer: { placeholder: 'Ask' } })
    expect(component().options.at(-1)?.composer).toEqual({ placeholder: 'Ask' })
  })
})
