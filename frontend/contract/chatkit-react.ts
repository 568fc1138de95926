/**
 * What the contract's listings import from '@openai/chatkit-react', which exports neither: tsconfig.json maps it to this file.
 * The other files here are the listings, verbatim. This folder is only type-checked.
 */

import type { useChatKit as original } from '../node_modules/@openai/chatkit-react'
import type { useChatKit as ours } from '@/lib/use-chatkit'

export * from '../node_modules/@openai/chatkit-react'
export type { ChatKitConfig } from '@/lib/chatkit-config'
export declare const useChatKit: typeof ours & typeof original // lib/ imports the original by the same name
