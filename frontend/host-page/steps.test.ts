import { describe, expect, it } from 'vitest'
import { type Facts, steps } from './steps'

const WELL: Facts = { service: 'ready', session: { id: 'ses_1', secondsLeft: 599.6 }, script: 'loaded', component: 'ready' }

function states(facts: Partial<Facts>): string[] {
  return Object.values(steps({ ...WELL, ...facts })).map(([state]) => state)
}

it('all is well', () => {
  expect(states({})).toEqual(['ok', 'ok', 'ok', 'ok'])
  expect(steps(WELL).session).toEqual(['ok', 'ses_1, 600 s left'])
})

describe('no chat is ready', () => {
  it.each<[string, Partial<Facts>, string[]]>([
    ['without a session', { session: 'failed' }, ['ok', 'failed', 'ok', 'failed']],
    ['without the service', { service: 'unreachable' }, ['failed', 'failed', 'ok', 'failed']],
    ['without the database', { service: { notReady: '…' } }, ['failed', 'ok', 'ok', 'failed']],
    ['without the component', { script: 'failed', component: null }, ['ok', 'ok', 'failed', 'failed']],
    ['that has removed itself', { component: 'failed' }, ['ok', 'ok', 'ok', 'failed']],
    ['before the session is there', { session: null }, ['ok', 'waiting', 'ok', 'waiting']],
    ['before the component is', { component: null }, ['ok', 'ok', 'ok', 'waiting']],
  ])('%s', (_, facts, expected) => {
    expect(states(facts)).toEqual(expected)
  })
})

it('a session that has run out gets no tick', () => {
  expect(steps({ ...WELL, session: { id: 'ses_1', secondsLeft: 0 } }).session).toEqual([
    'waiting',
    'ses_1, run out: the next message gets a new one',
  ])
})
