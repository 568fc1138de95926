// @vitest-environment jsdom
import '@testing-library/jest-dom/vitest'
import type { ChatKitEvents, ChatKitOptions, CustomApiConfig } from '@openai/chatkit-react'
import { act, cleanup, fireEvent, render, screen, waitFor } from '@testing-library/react'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { setAuthToken } from '@/lib/chatkit-config'
import { PageSession } from '@/lib/page-session'
import { setService } from '@/lib/service'
import { chatKitConfig } from '@/lib/chatkit-config'
import { ChatWindow } from './ChatWindow'

class Component extends HTMLElement {
  options: ChatKitOptions | null = null

  setOptions(options: ChatKitOptions) {
    this.options = options
  }
}

const success = { status: 'success', data: { client_secret: 'cs_1', session_id: 'ses_1', expires_in: 600 } }
let fetchMock: ReturnType<typeof vi.fn>
let dark: { matches: boolean; listeners: (() => void)[] }

function component(): Component {
  return document.querySelector<Component>('openai-chatkit')!
}

async function emit<K extends keyof ChatKitEvents>(name: K, detail?: unknown) {
  await act(async () => void component().dispatchEvent(new CustomEvent(name, { detail })))
}

beforeEach(() => {
  if (!customElements.get('openai-chatkit')) customElements.define('openai-chatkit', Component)
  localStorage.clear()
  setAuthToken(undefined)
  PageSession.of(chatKitConfig.api.getClientSecret).invalidate()
  fetchMock = vi.fn(async () => new Response(JSON.stringify(success)))
  vi.stubGlobal('fetch', fetchMock)
  dark = { matches: false, listeners: [] }
  vi.stubGlobal('matchMedia', () => ({
    get matches() {
      return dark.matches
    },
    addEventListener: (_: string, listener: () => void) => dark.listeners.push(listener),
    removeEventListener: () => {},
  }))
  for (const method of ['log', 'error'] as const) vi.spyOn(console, method).mockImplementation(() => {})
})

afterEach(() => {
  cleanup()
  vi.unstubAllGlobals()
})

describe('ChatKit initialization, tested by the contract', () => {
  it('should initialize ChatKit with valid config', async () => {
    render(<ChatWindow />)
    await waitFor(() => {
      expect(component().options).toEqual(
        expect.objectContaining({ api: expect.objectContaining({ getClientSecret: expect.any(Function) }) }),
      )
    })
    expect(fetchMock).toHaveBeenCalledWith(
      'http://localhost:8000/api/chatkit/sessions',
      expect.objectContaining({ method: 'POST' }),
    )
  })

  it('should display chat interface after initialization', async () => {
    render(<ChatWindow />)
    expect(screen.getByText('Loading chat...')).toBeInTheDocument()
    await act(async () => {}) // for the session
    await emit('chatkit.ready')
    await waitFor(() => {
      expect(screen.getByText('Chat interface loaded')).toBeInTheDocument()
    })
    expect(screen.queryByText('Loading chat...')).not.toBeInTheDocument()
  })
})

describe('an error', () => {
  it('is shown in plain words, with a working retry', async () => {
    fetchMock.mockResolvedValueOnce(
      new Response(JSON.stringify({ status: 'error', message: 'OpenAI authentication failed' }), { status: 401 }),
    )
    render(<ChatWindow />)
    expect(await screen.findByRole('alert')).toHaveTextContent('Error: Unable to start chat. Please check configuration.')
    expect(screen.queryByText('Loading chat...')).not.toBeInTheDocument()
    const failed = component()
    fireEvent.click(screen.getByRole('button', { name: 'Try again' }))
    expect(screen.getByText('Loading chat...')).toBeInTheDocument()
    expect(component()).not.toBe(failed)
    await act(async () => {})
    await emit('chatkit.ready')
    expect(screen.getByText('Chat interface loaded')).toBeInTheDocument()
    expect(screen.queryByRole('alert')).not.toBeInTheDocument()
    expect(fetchMock).toHaveBeenCalledTimes(2)
  })

  it('during a chat leaves the chat visible', async () => {
    render(<ChatWindow />)
    await act(async () => {})
    await emit('chatkit.ready')
    await emit('chatkit.error', { error: new Error('The response was interrupted') })
    expect(screen.getByRole('alert')).toHaveTextContent('Error: Something went wrong. Please try again.')
    expect(screen.queryByRole('button')).not.toBeInTheDocument()
    await emit('chatkit.response.start')
    expect(screen.queryByRole('alert')).not.toBeInTheDocument()
  })

  it('is passed to the configured onError', async () => {
    const onError = vi.fn()
    fetchMock.mockRejectedValueOnce(new TypeError('Failed to fetch'))
    render(<ChatWindow config={{ ...chatKitConfig, onError }} />)
    expect(await screen.findByRole('alert')).toHaveTextContent('Network connection lost. Please check your internet.')
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ message: 'Failed to fetch' }))
  })
})

describe('a response that goes on without the page', () => {
  let state: 'active' | 'interrupted' | null
  let stopStatus: number
  let isRetryRefused: boolean

  beforeEach(async () => {
    setService({ domainKey: 'local-dev' })
    isRetryRefused = false
    fetchMock.mockImplementation(async (url: string, init?: RequestInit) => {
      if (url.endsWith('/run')) return new Response(JSON.stringify({ data: state && { id: 'run_1', status: state } }))
      if (url.endsWith('/composer')) return new Response('{"data":{}}')
      if (url.endsWith('/sessions')) return new Response(JSON.stringify(success))
      if (init?.method === 'DELETE') return new Response('{}', { status: stopStatus })
      const { type } = JSON.parse(String(init?.body))
      if (type === 'threads.retry_after_item' && isRetryRefused) return new Response('{}', { status: 429 })
      return new Response(type === 'items.list' ? '{"data":[{"id":"msg_1","type":"user_message"}]}' : '{}')
    })
  })
  afterEach(() => {
    vi.useRealTimers()
    setService({})
  })

  /** Draw the chat, and load a conversation as the component does. */
  async function load() {
    render(<ChatWindow />)
    await act(async () => {})
    await emit('chatkit.ready')
    const { url, fetch: call } = component().options!.api as CustomApiConfig
    const body = JSON.stringify({ type: 'threads.get_by_id', params: { thread_id: 'thr_1' } })
    await act(async () => void (await call!(url, { method: 'POST', body })))
  }

  it('is shown until it has ended', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout'] })
    const fetchUpdates = vi.fn(async () => {})
    Object.assign(Component.prototype, { fetchUpdates })
    state = 'active'
    await load()
    expect(screen.getByRole('status', { name: 'Response' })).toHaveTextContent('A response is being written…')
    state = null
    await act(async () => void (await vi.advanceTimersByTimeAsync(1_000)))
    expect(fetchUpdates).toHaveBeenCalledOnce()
    expect(screen.queryByRole('status', { name: 'Response' })).not.toBeInTheDocument()
  })

  it('can be stopped', async () => {
    state = 'active'
    stopStatus = 500
    await load()
    const stop = () => act(async () => void fireEvent.click(screen.getByRole('button', { name: 'Stop' })))
    await stop()
    expect(screen.getByRole('status', { name: 'Response' })).toHaveTextContent('The response could not be stopped.')
    stopStatus = 200
    await stop()
    expect(fetchMock).toHaveBeenLastCalledWith(
      'http://localhost:8000/api/chatkit/runs/run_1',
      expect.objectContaining({ method: 'DELETE' }),
    )
    expect(screen.queryByRole('status', { name: 'Response' })).not.toBeInTheDocument()
  })

  it('can be retried if it was interrupted', async () => {
    state = 'interrupted'
    await load()
    expect(screen.getByRole('status', { name: 'Response' })).toHaveTextContent('The response was interrupted.')
    await act(async () => void fireEvent.click(screen.getByRole('button', { name: 'Try again' })))
    expect(JSON.parse(fetchMock.mock.calls.filter(([, init]) => init?.body).at(-1)![1].body)).toEqual({
      type: 'threads.retry_after_item',
      params: { thread_id: 'thr_1', item_id: 'msg_1' },
    })
  })

  it('that can’t be repeated yet keeps its retry', async () => {
    state = 'interrupted'
    isRetryRefused = true
    await load()
    await act(async () => void fireEvent.click(screen.getByRole('button', { name: 'Try again' })))
    expect(screen.getByRole('status', { name: 'Response' })).toHaveTextContent('The response could not be repeated.')
    expect(screen.getByRole('button', { name: 'Try again' })).toBeInTheDocument()
  })

  it('belongs to its conversation', async () => {
    state = 'interrupted'
    await load()
    await emit('chatkit.thread.change', { threadId: 'thr_2' })
    expect(screen.queryByRole('status', { name: 'Response' })).not.toBeInTheDocument()
  })
})

describe('the last conversation', () => {
  it('is continued on the next visit', async () => {
    const { unmount } = render(<ChatWindow />)
    await emit('chatkit.thread.change', { threadId: 'thr_1' })
    unmount()
    render(<ChatWindow />)
    expect(component().options?.initialThread).toBe('thr_1')
    await emit('chatkit.thread.change', { threadId: null })
    expect(localStorage.length).toBe(0)
  })

  it('is replaced by a new one if it was deleted', async () => {
    localStorage.setItem('chatkit.thread', 'thr_deleted')
    const onError = vi.fn()
    render(<ChatWindow config={{ ...chatKitConfig, onError }} />)
    const failed = component()
    expect(failed.options?.initialThread).toBe('thr_deleted')
    await emit('chatkit.thread.load.start', { threadId: 'thr_deleted' })
    await emit('chatkit.error', { error: new Error('threads.get_by_id was answered 404') })
    expect(component()).not.toBe(failed)
    expect(component().options?.initialThread).toBeNull()
    expect(localStorage.length).toBe(0)
    expect(screen.queryByRole('alert')).not.toBeInTheDocument()
    expect(onError).not.toHaveBeenCalled()
    expect(document.body).toHaveFocus() // the focus was not in the chat
  })

  it('is loaded before the chat is shown', async () => {
    localStorage.setItem('chatkit.thread', 'thr_1')
    render(<ChatWindow />)
    await act(async () => {})
    await emit('chatkit.thread.load.start', { threadId: 'thr_1' })
    await emit('chatkit.ready')
    expect(screen.getByText('Loading chat...')).toBeInTheDocument()
    await emit('chatkit.thread.load.end', { threadId: 'thr_1' })
    expect(screen.getByText('Chat interface loaded')).toBeInTheDocument()
    await emit('chatkit.thread.load.start', { threadId: 'thr_2' }) // chosen in ChatKit's own list
    expect(screen.getByText('Chat interface loaded')).toBeInTheDocument()
  })

  it('that fails to load for another reason is kept, and can be retried', async () => {
    localStorage.setItem('chatkit.thread', 'thr_1')
    render(<ChatWindow />)
    await act(async () => {})
    await emit('chatkit.ready')
    await emit('chatkit.thread.load.start', { threadId: 'thr_1' })
    await emit('chatkit.error', { error: new Error('threads.get_by_id was answered 503') })
    expect(localStorage.getItem('chatkit.thread')).toBe('thr_1')
    screen.getByRole('button', { name: 'Try again' }).focus()
    fireEvent.click(screen.getByRole('button', { name: 'Try again' }))
    expect(component().options?.initialThread).toBe('thr_1')
    expect(screen.getByRole('region', { name: 'Chat' })).toHaveFocus()
  })

  it('that has loaded is kept after an error', async () => {
    localStorage.setItem('chatkit.thread', 'thr_1')
    render(<ChatWindow />)
    await emit('chatkit.thread.load.start', { threadId: 'thr_1' })
    await emit('chatkit.thread.load.end', { threadId: 'thr_1' })
    await emit('chatkit.error', { error: new Error('The response was interrupted') })
    expect(localStorage.getItem('chatkit.thread')).toBe('thr_1')
  })

  it('is optional: a browser without storage has a chat', async () => {
    vi.stubGlobal('localStorage', {
      getItem: () => {
        throw new DOMException('denied', 'SecurityError')
      },
    })
    render(<ChatWindow />)
    await emit('chatkit.thread.change', { threadId: 'thr_1' })
    expect(component().options?.initialThread).toBeNull()
  })
})

it('follows the dark mode of the system', async () => {
  render(<ChatWindow />)
  expect(component().options?.theme).toMatchObject({ colorScheme: 'light' })
  dark.matches = true
  act(() => dark.listeners.forEach((listener) => listener()))
  expect(component().options?.theme).toMatchObject({ colorScheme: 'dark', color: { accent: { primary: '#0070f3' } } })
})
