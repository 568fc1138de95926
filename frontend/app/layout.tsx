import type { Metadata, Viewport } from 'next'
import type { ReactNode } from 'react'
import './globals.css'

export const metadata: Metadata = { title: 'Chat', description: 'A chat with ChatKit' }

export const viewport: Viewport = { colorScheme: 'light dark', interactiveWidget: 'resizes-content' }

export default function Layout({ children }: { children: ReactNode }) {
  return (
    <html lang="en">
      <body>{children}</body>
    </html>
  )
}
