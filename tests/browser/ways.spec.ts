import { words } from './support/chat'
import { OwnRelay } from './support/relay'
import { expect, requestsOf, test, testThroughVite } from './support/test'

test('with CORS the page talks straight to the relay', async ({ chat, page }) => {
  const requests = requestsOf(page)
  await chat.open('demo/length')
  await chat.ask('Straight?')
  await chat.ends('complete')
  await chat.showsWhatIsStored()
  expect(requests.some((url) => url.startsWith(`http://localhost:8001/conversations/${chat.id()}/stream`))).toBe(true)
})

for (const script of ['dev:proxy', 'preview'] as const) {
  testThroughVite.describe(`npm run ${script}`, () => {
    testThroughVite.use({ script })

    testThroughVite('lets the page talk to its own origin only, whichever it is', async ({ chat, page, baseURL }) => {
      const requests = requestsOf(page)
      await chat.open('demo/echo')
      const shown = chat.statesShown()
      await chat.ask(`Through Vite? ${words(250)}`)
      expect((await shown).length).toBeGreaterThan(3) // nothing on the way keeps the stream back
      await chat.ends('complete')
      await chat.showsWhatIsStored()
      expect(requests.some((url) => url.startsWith(`${baseURL}/api/conversations/${chat.id()}/stream`))).toBe(true)
      expect(requests.filter((url) => !url.startsWith(`${baseURL}/`))).toEqual([])
    })
  })
}

testThroughVite('through Vite’s proxy an answer can be stopped', async ({ chat }) => {
  await chat.open('demo/silent')
  await chat.ask('Stop?')
  await chat.stop.click()
  await chat.ends('stopped')
})

testThroughVite.extend({
  relay: async ({}, use) => {
    const relay = await OwnRelay.start()
    await use(relay)
    await relay.process.stop()
  },
  viteEnv: ({ relay }, use) => use({ RELAY_URL: relay.url }),
})('Vite’s proxy finds a relay on another port', async ({ chat, relay }) => {
  await chat.open('demo/length')
  await chat.ask('Over there?')
  await chat.ends('complete')
  expect(await relay.counts()).toMatchObject({ conversations: 1, messages: 2 })
})
