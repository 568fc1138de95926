'use client'

import { ChatKit } from '@openai/chatkit-react'
import { useState } from 'react'
import { chatKitConfig } from '@/lib/chatkit-config'
import { useChatKit } from '@/lib/use-chatkit'

/** A chat in a drawer that opens and closes, and what `onError` is told meanwhile. */
export default function Page() {
  const [open, setOpen] = useState(true)
  const [told, setTold] = useState<string[]>([])
  const { chat, isReady } = useChatKit({ ...chatKitConfig, onError: (error) => setTold((before) => [...before, error.message]) })
  return (
    <main>
      <button type="button" onClick={() => setOpen(!open)}>
        Drawer
      </button>
      <p role="status">{isReady ? 'ready' : 'not ready'}</p>
      {open && <ChatKit control={chat.control} style={{ display: 'block', height: '20rem' }} />}
      <ul aria-label="Told">
        {told.map((line, index) => (
          <li key={index}>{line}</li>
        ))}
      </ul>
    </main>
  )
}
