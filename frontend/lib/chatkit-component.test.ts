// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { COMPONENT_LIMIT_MS, COMPONENT_URL, limitLoading, watchRemoval } from './chatkit-component'

/** A page on which nothing has been tried yet. */
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

describe('the script of the CDN', () => {
  it('is asked for once, however many want it', async () => {
    const load = await freshLoader()
    void load()
    void load()
    expect(scripts().map((script) => script.src)).toEqual([COMPONENT_URL])
  })

  it('is not added beside the page’s own', async () => {
    document.head.innerHTML = `<script src="${COMPONENT_URL}" async></script>`
    const load = await freshLoader()
    void load().catch(() => {})
    expect(scripts()).toHaveLength(1)
  })

  it('that is blocked says so, and the next try is a real one', async () => {
    const load = await freshLoader()
    const blocked = load()
    scripts()[0]!.dispatchEvent(new Event('error'))
    await expect(blocked).rejects.toMatchObject({ code: 'script_not_loaded', message: expect.stringContaining(COMPONENT_URL) })
    expect(scripts()).toHaveLength(0)
    void load().catch(() => {})
    expect(scripts()).toHaveLength(1)
  })

  it('that never comes, or is something else, ends', async () => {
    const load = await freshLoader()
    const endless = load()
    vi.advanceTimersByTime(COMPONENT_LIMIT_MS)
    await expect(endless).rejects.toThrow('too long')
  })

  it('that defines the component is all that is needed', async () => {
    const load = await freshLoader()
    const loading = load()
    customElements.define('openai-chatkit', class extends HTMLElement {})
    await loading
    await (
      await freshLoader()
    )()
  })
})

it('a component that does not become ready is an error after a while, unless that is called off', () => {
  const fail = vi.fn()
  limitLoading(fail)
  limitLoading(() => expect.unreachable())()
  vi.advanceTimersByTime(COMPONENT_LIMIT_MS)
  expect(fail).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ code: 'not_ready' }))
})

it('a component that takes itself away is an error', async () => {
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
