import { describe, expect, it } from 'vitest'
import { type Facts, steps } from './steps'

const ALL_WORK: Facts = { service: 'ready', session: { id: 'ses_1', secondsLeft: 599.6 }, script: 'loaded', component: 'ready' }

function states(facts: Partial<Facts>): string[] {
  return Object.values(steps({ ...ALL_WORK, ...facts })).map(([state]) => state)
}

it('all steps work', () => {
  expect(states({})).toEqual(['ok', 'ok', 'ok', 'ok'])
  expect(steps(ALL_WORK).session).toEqual(['ok', '600 s left, ses_1'])
})

describe('the chat is not ready', () => {
  it.each<[string, Partial<Facts>, string[]]>([
    ['without a session', { session: 'failed' }, ['ok', 'failed', 'ok', 'failed']],
    ['without the service', { service: 'unreachable' }, ['failed', 'failed', 'ok', 'failed']],
    ['without the database', { service: { notReady: '…' } }, ['failed', 'ok', 'ok', 'failed']],
    ['without the component', { script: 'failed', component: null }, ['ok', 'ok', 'failed', 'failed']],
    ['after it has removed itself', { component: 'failed' }, ['ok', 'ok', 'ok', 'failed']],
    ['before there is a session', { session: null }, ['ok', 'waiting', 'ok', 'waiting']],
    ['before there is a component', { component: null }, ['ok', 'ok', 'ok', 'waiting']],
  ])('%s', (_, facts, expected) => {
    expect(states(facts)).toEqual(expected)
  })
})

it('an expired session is not shown as working', () => {
  expect(steps({ ...ALL_WORK, session: { id: 'ses_1', secondsLeft: 0 } }).session).toEqual([
    'waiting',
    'expired, ses_1: the next message gets a new session',
  ])
})
