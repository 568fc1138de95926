'use client'

import { ChatKit } from '@openai/chatkit-react'
import { useState } from 'react'
import { chatKitConfig } from '@/lib/chatkit-config'
import { useChatKit } from '@/lib/use-chatkit'

/** A chat with a list of its `onMessage` and `onError` calls, and a button that sends a message from the app. */
export default function Page() {
  const [events, setEvents] = useState<string[]>([])
  const add = (line: string) => setEvents((before) => [...before, line])
  const { chat, isReady } = useChatKit({
    ...chatKitConfig,
    onMessage: (message) => add(`message: ${message}`),
    onError: (error) => add(`error: ${error.message}`),
  })
  return (
    <main>
      <ChatKit control={chat.control} style={{ display: 'block', height: '20rem' }} />
      <button type="button" disabled={!isReady} onClick={() => void chat.sendUserMessage({ text: 'From the app' })}>
        Send from the app
      </button>
      <ul aria-label="Events">
        {events.map((line, index) => (
          <li key={index}>{line}</li>
        ))}
      </ul>
    </main>
  )
}
