// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { COMPONENT_TIMEOUT_MS, COMPONENT_URL, startReadyTimeout, watchRemoval } from './chatkit-component'

/** `loadChatKit` of a new page. */
async function freshLoader() {
  vi.resetModules()
  return (await import('./chatkit-component')).loadChatKit
}

function scripts() {
  return [...document.querySelectorAll('script')]
}

beforeEach(() => void vi.useFakeTimers())
afterEach(() => {
  vi.useRealTimers()
  document.head.replaceChildren()
  document.body.replaceChildren()
})

describe('the CDN script', () => {
  it('is requested once by concurrent callers', async () => {
    const load = await freshLoader()
    void load()
    void load()
    expect(scripts().map((script) => script.src)).toEqual([COMPONENT_URL])
  })

  it('is not added to a page that has it', async () => {
    document.head.innerHTML = `<script src="${COMPONENT_URL}" async></script>`
    const load = await freshLoader()
    void load().catch(() => {})
    expect(scripts()).toHaveLength(1)
  })

  it('is an error when blocked, and is requested again by the next call', async () => {
    const load = await freshLoader()
    const blocked = load()
    scripts()[0]!.dispatchEvent(new Event('error'))
    await expect(blocked).rejects.toMatchObject({ code: 'script_not_loaded', message: expect.stringContaining(COMPONENT_URL) })
    expect(scripts()).toHaveLength(0)
    void load().catch(() => {})
    expect(scripts()).toHaveLength(1)
  })

  it('is an error when it does not define the component in time', async () => {
    const load = await freshLoader()
    const endless = load()
    vi.advanceTimersByTime(COMPONENT_TIMEOUT_MS)
    await expect(endless).rejects.toThrow('timed out')
  })

  it('is loaded when it has defined the component', async () => {
    const load = await freshLoader()
    const loading = load()
    customElements.define('openai-chatkit', class extends HTMLElement {})
    await loading
    await (
      await freshLoader()
    )()
  })
})

it('a component that does not become ready in time is an error, unless the timeout is cancelled', () => {
  const fail = vi.fn()
  startReadyTimeout(fail)
  startReadyTimeout(() => expect.unreachable())()
  vi.advanceTimersByTime(COMPONENT_TIMEOUT_MS)
  expect(fail).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ code: 'not_ready' }))
})

it('a component that removes itself is an error', async () => {
  const element = document.body.appendChild(document.createElement('div'))
  const fail = vi.fn()
  watchRemoval(element, fail)
  document.body.append('something else')
  await Promise.resolve()
  expect(fail).not.toHaveBeenCalled()
  element.remove()
  await Promise.resolve()
  expect(fail).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ code: 'removed' }))
})
