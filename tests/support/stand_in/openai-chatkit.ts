/**
 * A stand-in for the script of OpenAI's CDN, which the tests can't reach: an `<openai-chatkit>` with the documented interface
 * that speaks the real protocol. Like the real one, it is a classic script, adds a style to the document, is ready once a frame
 * of the CDN has loaded and accepted the page's domain, and requests secrets and calls `fetch` as documented.
 *
 * Unlike the real one, it renders the chat in the page, in an open shadow root with a minimal design.
 */

import type { ChatKitEvents, ChatKitOptions, OpenAIChatKit } from '@openai/chatkit'

type Interface = Omit<OpenAIChatKit, keyof HTMLElement>
type Message = Parameters<OpenAIChatKit['sendUserMessage']>[0]
type Detail<K extends keyof ChatKitEvents> = ChatKitEvents[K] extends CustomEvent<infer D> ? D : never

const CDN = new URL((document.currentScript as HTMLScriptElement).src).origin
const HOSTED_URL = 'https://api.openai.com/v1/chatkit/conversation'

const STYLE = `
  :host { color-scheme: light; --paper: #ffffff; --ink: #0d0d0d; --bubble: #f0f0f0; --accent: #0d0d0d; }
  :host([color-scheme="dark"]) { color-scheme: dark; --paper: #181818; --ink: #f5f5f5; --bubble: #303030; --accent: #f5f5f5; }
  .chat { display: flex; flex-direction: column; height: 100%; box-sizing: border-box; padding: 1rem; gap: .75rem;
    background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
  .log { flex: 1; min-height: 0; overflow: auto; display: flex; flex-direction: column; gap: .75rem; }
  p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
  p.user { align-self: flex-end; max-width: 80%; padding: .5rem 1rem; border-radius: 1.25rem; background: var(--bubble); }
  form { display: flex; gap: .5rem; }
  p img { display: block; max-width: 8rem; }
  input { flex: 1; min-width: 0; font: inherit; padding: .6rem 1rem; border: 1px solid #80808080; border-radius: 1.5rem;
    background: var(--paper); color: var(--ink); }
  button { font: inherit; padding: .6rem 1rem; border: 1px solid #80808080; border-radius: 1.5rem; background: var(--paper); color: var(--ink);
    cursor: pointer; }
  form button { background: var(--accent); color: #ffffff; }
  .prompts { display: flex; flex-wrap: wrap; gap: .5rem; }
  h2 { margin: auto 0 0; font-size: 1.25rem; }
  iframe { display: none; }`

class StandIn extends HTMLElement implements Interface {
  private options: ChatKitOptions | null = null
  private hostedSecret: string | null = null
  private threadId: string | null = null
  private readonly root = this.attachShadow({ mode: 'open' })
  private readonly log = element('div', { class: 'log', role: 'log', 'aria-label': 'Conversation', tabindex: '0' })
  private readonly input = element('input', { name: 'message', autocomplete: 'off' })
  private readonly start = element('div', { class: 'start' })
  private readonly heading = element('div', { class: 'heading' })
  private readonly progress = element('p', { class: 'progress' })
  private readonly model = element('select', { 'aria-label': 'Model' })
  private readonly tool = element('select', { 'aria-label': 'Tool' })
  private readonly file = element('input', { type: 'file', multiple: '', 'aria-label': 'Attach files', hidden: '' })
  private readonly attached = element('div', { class: 'attached' })
  private readonly stop = element('button', { type: 'button', hidden: '' }, 'Stop')
  private streaming: AbortController | null = null
  private pendingCall: any = null
  private frame: HTMLIFrameElement | null = null
  private isReady = false

  constructor() {
    super()
    const form = element('form', {}, this.input, this.file, this.model, this.tool, element('button', {}, 'Send'))
    form.addEventListener('submit', (event) => {
      event.preventDefault()
      if (this.input.value.trim() || this.attached.querySelector('[data-id]')) void this.submit(this.input.value)
    })
    this.file.addEventListener('change', () => {
      for (const file of this.file.files!) void this.attach(file).catch((reason) => this.fail(reason))
    })
    this.stop.addEventListener('click', () => this.streaming?.abort())
    const parts = [this.heading, this.start, this.log, this.progress, this.stop, this.attached, form]
    this.root.append(element('style', {}, STYLE), element('div', { class: 'chat' }, ...parts))
  }

  setOptions(options: ChatKitOptions): void {
    const { api } = options
    if ('getClientSecret' in api ? 'domainKey' in api || 'url' in api : !api.url || !api.domainKey) {
      throw new Error('Invalid frame params: ChatKit.create(): Invalid input at api')
    }
    const isFirst = !this.options
    this.options = options
    this.draw()
    if (isFirst) this.open()
  }

  disconnectedCallback(): void {
    removeEventListener('message', this.onFrameMessage)
  }

  async focusComposer(): Promise<void> {
    this.input.focus()
  }

  async setThreadId(threadId: string | null): Promise<void> {
    this.log.replaceChildren()
    this.changeThread(threadId)
    if (threadId) await this.load(threadId)
    this.draw()
  }

  async sendUserMessage(message: Message): Promise<void> {
    if (message.newThread) await this.setThreadId(null)
    await this.submit(message.text ?? (message.content ?? []).map((part) => part.text).join(''))
  }

  async setComposerValue({ text }: { text?: string }): Promise<void> {
    this.input.value = text ?? ''
  }

  async sendCustomAction(action: { type: string; payload?: Record<string, unknown> }, itemId?: string): Promise<void> {
    await this.stream('threads.custom_action', { thread_id: this.threadId, item_id: itemId, action })
  }

  /** Shows the conversation as it is stored now. Unlike loading it, that emits no events. */
  async fetchUpdates(): Promise<void> {
    const threadId = this.threadId
    if (!threadId) return
    const thread = await (await this.call('threads.get_by_id', { thread_id: threadId })).json()
    if (this.threadId !== threadId) return
    const stored = new Set(thread.items.data.map((item: { id: string }) => item.id))
    for (const line of [...this.log.children]) if (!stored.has(line.id)) line.remove()
    for (const item of thread.items.data) this.show(item)
  }

  async showHistory(): Promise<void> {
    const page = await (await this.call('threads.list', { limit: 20, order: 'desc' })).json()
    this.log.replaceChildren(...page.data.map((thread: { title?: string; id: string }) => element('p', {}, thread.title ?? thread.id)))
    this.emit('chatkit.history.open', undefined)
  }

  async hideHistory(): Promise<void> {
    if (this.threadId) await this.setThreadId(this.threadId)
    this.emit('chatkit.history.close', undefined)
  }

  private draw(): void {
    const { theme, composer, startScreen } = this.options!
    const { colorScheme = 'light', color } = typeof theme === 'string' ? { colorScheme: theme } : (theme ?? {})
    this.setAttribute('color-scheme', colorScheme)
    this.style.setProperty('--accent', color?.accent?.primary ?? '')
    this.input.placeholder = composer?.placeholder ?? 'Message the AI'
    this.input.setAttribute('aria-label', this.input.placeholder)
    this.file.hidden = !composer?.attachments?.enabled
    this.file.accept = Object.values(composer?.attachments?.accept ?? {}).flat().join()
    this.offer(this.model, composer?.models ?? [])
    this.offer(this.tool, composer?.tools ? [{ id: '', label: 'No tool' }, ...composer.tools] : [])
    const prompts = (startScreen?.prompts ?? []).map(({ label, prompt }) => {
      const button = element('button', { type: 'button' }, label)
      button.addEventListener('click', () => void this.submit(String(prompt)))
      return button
    })
    this.start.replaceChildren(
      element('h2', {}, startScreen?.greeting ?? 'What can I help with today?'),
      element('div', { class: 'prompts' }, ...prompts),
    )
    this.start.hidden = this.log.childElementCount > 0
  }

  private offer(select: HTMLSelectElement, options: { id: string; label: string; default?: boolean; disabled?: boolean }[]): void {
    const chosen = select.value || options.find((option) => option.default)?.id || options[0]?.id
    select.replaceChildren(
      ...options.map(({ id, label, disabled }) => element('option', { value: id, ...(disabled && { disabled: '' }) }, label)),
    )
    select.hidden = options.length === 0
    if (chosen) select.value = chosen
  }

  private open(): void {
    addEventListener('message', this.onFrameMessage)
    this.frame = element('iframe', { src: `${CDN}/deployments/chatkit/index-stand-in.html`, title: this.options?.frameTitle ?? 'Chat' })
    this.root.append(this.frame)
    const { api } = this.options!
    if ('getClientSecret' in api) {
      api.getClientSecret(null).then(
        (secret) => (this.hostedSecret = secret),
        (reason) => this.fail(reason),
      )
    }
  }

  /** The frame reports whether OpenAI allows ChatKit on this page's domain. If not, the element removes itself, like the real one. */
  private readonly onFrameMessage = ({ source, data }: MessageEvent): void => {
    if (source !== this.frame?.contentWindow) return
    if (data === 'unmount') {
      this.fail(new Error(`Domain verification failed for ${location.origin}`))
      this.remove()
    }
    if (data === 'ready' && !this.isReady) {
      this.isReady = true
      this.emit('chatkit.ready', undefined)
      const thread = this.options?.initialThread
      if (thread) void this.setThreadId(thread)
    }
  }

  /** Announce a file and upload it, as the documentation of `uploadStrategy` says. */
  private async attach(file: File): Promise<void> {
    const { api } = this.options!
    if ('getClientSecret' in api || api.uploadStrategy?.type !== 'two_phase') throw new Error('uploadStrategy is not two_phase')
    const button = element('button', { type: 'button', hidden: '' }, `Remove ${file.name}`)
    this.attached.append(button) // before the calls, so that files keep their order when a later one is faster
    const announced = { name: file.name, size: file.size, mime_type: file.type }
    const { id, upload_descriptor } = await (await this.call('attachments.create', announced)).json()
    const { url, method, headers } = upload_descriptor
    const uploaded = await fetch(url, { method, headers, body: file })
    if (!uploaded.ok) throw new Error(`The upload failed with status ${uploaded.status}`)
    button.dataset.id = id
    button.hidden = false
    button.addEventListener('click', () => {
      button.remove()
      void this.call('attachments.delete', { attachment_id: id }).catch((reason) => this.fail(reason))
    })
  }

  private async submit(text: string): Promise<void> {
    const inference_options = {
      ...(this.model.value && { model: this.model.value }),
      ...(this.tool.value && { tool_choice: { id: this.tool.value } }),
    }
    const attachments = [...this.attached.querySelectorAll<HTMLElement>('[data-id]')].map((button) => button.dataset.id)
    this.attached.replaceChildren()
    const input = { content: await this.parts(text), attachments, inference_options }
    this.input.value = ''
    this.tool.value = ''
    this.emit('chatkit.response.start', undefined)
    try {
      if (this.threadId) await this.stream('threads.add_user_message', { thread_id: this.threadId, input })
      else await this.stream('threads.create', { input })
    } catch (reason) {
      this.input.value = text // so that the user can send it again
      this.fail(reason)
    }
    this.emit('chatkit.response.end', undefined)
  }

  /** The parts of a message: `@word` becomes a tag if the page finds an entity for it. */
  private async parts(text: string): Promise<object[]> {
    const search = this.options!.entities?.onTagSearch
    const parts: object[] = []
    for (const part of search ? text.split(/(@\w+)/).filter(Boolean) : [text]) {
      const [entity] = part.startsWith('@') ? await search!(part.slice(1)) : []
      if (entity) parts.push({ type: 'input_tag', id: entity.id, text: entity.title, data: entity.data ?? {}, interactive: true })
      else parts.push({ type: 'input_text', text: part })
    }
    return parts
  }

  private async load(threadId: string): Promise<void> {
    this.emit('chatkit.thread.load.start', { threadId })
    try {
      const thread = await (await this.call('threads.get_by_id', { thread_id: threadId })).json()
      for (const item of thread.items.data) this.show(item)
      this.emit('chatkit.thread.load.end', { threadId })
    } catch (reason) {
      this.threadId = null
      this.fail(reason)
    }
  }

  private async stream(type: string, params: object): Promise<void> {
    const streaming = (this.streaming = new AbortController())
    try {
      await this.read(await this.call(type, params, streaming.signal))
    } catch (reason) {
      if (!streaming.signal.aborted) throw reason // else the user has stopped it, which is no error
    } finally {
      this.stop.hidden = true
      this.progress.textContent = ''
    }
    const call = this.pendingCall
    this.pendingCall = null
    if (!call || !this.options!.onClientTool) return
    const result = await this.options!.onClientTool({ name: call.name, params: call.arguments })
    await this.stream('threads.add_client_tool_output', { thread_id: call.thread_id, result })
  }

  private async read(response: Response): Promise<void> {
    const reader = response.body!.getReader()
    const decoder = new TextDecoder()
    let rest = ''
    for (;;) {
      const { done, value } = await reader.read()
      if (done) break
      const parts = (rest + decoder.decode(value, { stream: true })).split('\n\n')
      rest = parts.pop()!
      for (const part of parts) if (part.startsWith('data: ')) this.take(JSON.parse(part.slice(6)))
    }
  }

  /** Send one request of the protocol, as the options say. */
  private async call(type: string, params: object, signal?: AbortSignal): Promise<Response> {
    const { api } = this.options!
    const body = JSON.stringify({ type, params })
    let response: Response
    if ('getClientSecret' in api) {
      const send = () => fetch(HOSTED_URL, { method: 'POST', body, headers: { Authorization: `Bearer ${this.hostedSecret}` } })
      response = await send()
      if (response.status === 401) {
        this.hostedSecret = await api.getClientSecret(this.hostedSecret)
        response = await send()
      }
    } else {
      const headers = { 'Content-Type': 'application/json', 'chatkit-frontend-version': 'stand-in' }
      response = await (api.fetch ?? fetch)(api.url, { method: 'POST', body, headers, signal })
    }
    if (!response.ok) throw new Error(`${type} failed with status ${response.status}`)
    return response
  }

  private take(event: any): void {
    if (event.type === 'thread.created') this.changeThread(event.thread.id)
    if (event.type === 'thread.item.added' || event.type === 'thread.item.done' || event.type === 'thread.item.replaced') this.show(event.item)
    if (event.type === 'thread.item.updated' && event.update.type === 'assistant_message.content_part.text_delta') {
      this.line(event.item_id, 'assistant_message').textContent += event.update.delta
    }
    if (event.type === 'thread.item.updated' && event.update.type === 'generated_image.updated') {
      this.drawImage(event.item_id, event.update.image)
    }
    if (event.type === 'thread.item.removed') this.log.querySelector(`[id="${event.item_id}"]`)?.remove()
    if (event.type === 'stream_options') this.stop.hidden = !event.stream_options.allow_cancel
    if (event.type === 'thread.updated') this.heading.textContent = event.thread.title ?? ''
    if (event.type === 'progress_update') this.progress.textContent = event.text
    if (event.type === 'client_effect') this.emit('chatkit.effect', { name: event.name, data: event.data })
    if (event.type === 'thread.item.done' && event.item.type === 'client_tool_call') this.pendingCall = event.item
    if (event.type === 'error') this.fail(new Error(event.message ?? event.code))
  }

  private show(item: any): void {
    if (item.type === 'widget') return this.drawWidget(item)
    if (item.type === 'generated_image') return this.drawImage(item.id, item.image)
    const text = item.content ? item.content.map((part: { text: string }) => part.text).join('') : ''
    const files = item.attachments ?? []
    if (!text && !files.length && item.type !== 'assistant_message') return
    const line = this.line(item.id, item.type)
    line.textContent = text
    for (const { type, name, preview_url } of files) {
      line.append(type === 'image' ? element('img', { src: preview_url, alt: name }) : element('span', {}, name))
    }
    for (const part of item.content ?? []) {
      for (const { source } of part.annotations ?? []) {
        const link = element('button', { type: 'button', class: 'source' }, source.title)
        const { id, title, data } = source
        if (source.type === 'entity' && source.interactive) {
          link.addEventListener('click', () => this.options!.entities?.onClick?.({ id, title, data }))
        }
        line.append(link)
      }
    }
  }

  private drawImage(id: string, image: { url: string } | undefined): void {
    const drawn = image ? [element('img', { src: image.url, alt: 'Generated image' })] : []
    this.line(id, 'generated_image').replaceChildren(...drawn)
  }

  /** Only what the tests' cards have: titles, texts, inputs, buttons, and a card's own two buttons, which send its inputs. */
  private drawWidget(item: any): void {
    const inputs: HTMLInputElement[] = []
    const button = (label: string, action: () => any, disabled?: boolean) => {
      const drawn = element('button', { type: 'button', ...(disabled && { disabled: '' }) }, label)
      drawn.addEventListener('click', () => void this.act(action(), item).catch((reason) => this.fail(reason)))
      return drawn
    }
    const children = (item.widget.children ?? []).map((child: any) => {
      if (child.type === 'Button') return button(child.label, () => child.onClickAction, child.disabled)
      if (child.type !== 'Input') return element('span', {}, child.value ?? '')
      const input = element('input', { name: child.name, placeholder: child.placeholder ?? '' })
      inputs.push(input)
      return input
    })
    for (const own of [item.widget.confirm, item.widget.cancel]) {
      const filled = () => ({ ...own.action.payload, ...Object.fromEntries(inputs.map(({ name, value }) => [name, value])) })
      if (own) children.push(button(own.label, () => ({ ...own.action, payload: filled() })))
    }
    this.line(item.id, item.type).replaceChildren(...children)
  }

  private async act({ type, payload, handler, streaming }: any, item: any): Promise<void> {
    const action = { type, payload }
    if (handler === 'client') return this.options!.widgets?.onAction?.(action, item)
    if (streaming !== false) return this.sendCustomAction(action, item.id)
    const params = { thread_id: this.threadId, item_id: item.id, action }
    const { updated_item } = await (await this.call('threads.sync_custom_action', params)).json()
    if (updated_item) this.show(updated_item)
  }

  private line(id: string, type: string): HTMLElement {
    const known = this.log.querySelector<HTMLElement>(`[id="${id}"]`)
    if (known) return known
    const line = element('p', { id, class: type === 'user_message' ? 'user' : 'assistant' })
    this.log.append(line)
    this.start.hidden = true
    return line
  }

  private changeThread(threadId: string | null): void {
    this.threadId = threadId
    this.emit('chatkit.thread.change', { threadId })
  }

  private fail(reason: unknown): void {
    this.emit('chatkit.error', { error: reason instanceof Error ? reason : new Error(String(reason)) })
  }

  private emit<K extends keyof ChatKitEvents>(name: K, detail: Detail<K>): void {
    this.dispatchEvent(new CustomEvent(name, { detail }))
  }
}

function element<K extends keyof HTMLElementTagNameMap>(
  name: K,
  attributes: Record<string, string>,
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(name)
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value)
  made.append(...children)
  return made
}

document.head.append(element('style', {}, 'openai-chatkit { display: block; height: 100%; }'))
customElements.define('openai-chatkit', StandIn)
