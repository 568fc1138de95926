/**
 * What the contract's listings import from '@openai/chatkit-react', which has neither: tsconfig.json maps that name to this file.
 * The files beside this one are the listings as they stand; this folder is only type-checked.
 */

import type { useChatKit as itself } from '../node_modules/@openai/chatkit-react'
import type { useChatKit as ours } from '@/lib/use-chatkit'

export * from '../node_modules/@openai/chatkit-react'
export type { ChatKitConfig } from '@/lib/chatkit-config'
export declare const useChatKit: typeof ours & typeof itself // lib/ imports the second one by the same name
