'use client'

import { ChatKit } from '@openai/chatkit-react'
import { useState } from 'react'
import { chatKitConfig } from '@/lib/chatkit-config'
import { useChatKit } from '@/lib/use-chatkit'

/** A chat with the example's server, and a list of what the page was told. */
export default function Page() {
  const [told, setTold] = useState<string[]>([])
  const tell = (line: string) => setTold((before) => [...before, line])
  const { chat } = useChatKit(chatKitConfig, {
    composer: { placeholder: 'Ask the gardener' },
    entities: {
      onTagSearch: async (query) => [{ id: query.toLowerCase(), title: query, data: {} }],
      onClick: (entity) => tell(`source: ${entity.data?.plant}`),
    },
    widgets: {
      onAction: async ({ type, payload }) => tell(`${type}: ${payload?.plant}`),
    },
    onClientTool: ({ name }) => ({ asked: name, bed: 'north' }),
    onEffect: ({ name, data }) => tell(`${name}: ${JSON.stringify(data)}`),
  })
  return (
    <main>
      <ChatKit control={chat.control} style={{ display: 'block', height: '30rem' }} />
      <ul aria-label="Told">
        {told.map((line, index) => (
          <li key={index}>{line}</li>
        ))}
      </ul>
    </main>
  )
}
