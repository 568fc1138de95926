'use client'

import { ChatKit } from '@openai/chatkit-react'
import { useState } from 'react'
import { chatKitConfig } from '@/lib/chatkit-config'
import { useChatKit } from '@/lib/use-chatkit'

/** A chat that shows what `onMessage` and `onError` are told, and sends something by itself. */
export default function Page() {
  const [told, setTold] = useState<string[]>([])
  const tell = (line: string) => setTold((before) => [...before, line])
  const { chat, isReady } = useChatKit({
    ...chatKitConfig,
    onMessage: (message) => tell(`message: ${message}`),
    onError: (error) => tell(`error: ${error.message}`),
  })
  return (
    <main>
      <ChatKit control={chat.control} style={{ display: 'block', height: '20rem' }} />
      <button type="button" disabled={!isReady} onClick={() => void chat.sendUserMessage({ text: 'From the app' })}>
        Send from the app
      </button>
      <ul aria-label="Told">
        {told.map((line, index) => (
          <li key={index}>{line}</li>
        ))}
      </ul>
    </main>
  )
}
