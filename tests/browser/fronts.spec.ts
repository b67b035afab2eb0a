import { expectAccessible } from './support/axe'
import { expectBeginnings, words } from './support/chat'
import { testFront as test } from './support/front'
import { fronts, type FrontName } from './support/fronts'
import { actionsOf, expect, hold, inFile, lose } from './support/test'

const question = `Repeat: ${words(20)}`
const messages = /\/messages$/

for (const frontName of Object.keys(fronts).filter((name) => !name.includes('README')) as FrontName[]) {
  test.describe(frontName, () => {
    test.use({ frontName })

    test('an answer streams in, once, and a chat that is opened again starts nothing', async ({ front, page, relay }) => {
      await front.open('demo/echo')
      await expectAccessible(page)
      const actions = actionsOf(page)
      const shown = front.statesShown()
      await front.ask(question)
      await front.reaches(10)
      await expectAccessible(page)
      const states = await shown
      expect(states.length).toBeGreaterThan(3)
      expectBeginnings(states, (await front.arrivesWhole()).content)
      const asked = (id: string) => ['POST /conversations', `POST /conversations/${id}/messages`]
      expect(actions).toEqual(asked(front.id()))
      await expect(front.answer).toContainText(/demo\/echo.* · \d+ tokens · \$0\.000\d+/)
      await expectAccessible(page)

      const text = await front.text()
      await page.reload()
      await expect(front.answer).toHaveAttribute('data-status', 'complete')
      await page.waitForLoadState('networkidle')
      expect(await front.text()).toBe(text)
      await expect(front.alert).toHaveCount(0)
      await expect(front.stop).toHaveCount(0)
      expect(actions.filter((action) => !action.includes('join=true'))).toEqual(asked(front.id()))
      expect(relay.generations(front.id())).toBe(1)
      expect((await front.stored())[0]!.id).not.toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-/) // the page's own

      await front.ask('And now?')
      await expect(front.answers).toHaveCount(2)
      await front.arrivesWhole(2)
      expect(await front.stored()).toHaveLength(4)
    })

    test('reasoning comes apart from the answer', async ({ front, page }) => {
      await front.open('demo/reasoning')
      await front.ask('Think')
      await front.arrivesWhole()
      const reasoning = (await front.stored())[1]!.reasoning
      expect(reasoning).toBeTruthy()
      for (const load of [1, 2]) {
        await expect(front.answer.locator('details')).toContainText(reasoning!)
        await front.answer.locator('summary').click()
        await expectAccessible(page)
        if (load === 1) await page.reload()
      }
    })

    test('a reload in the middle and a second tab lose nothing and double nothing', async ({ front, page, anotherFront }) => {
      await front.open('demo/echo')
      await front.ask(question)
      await front.reaches(50)
      const states = [await front.text()]
      await page.reload()
      await front.reaches(50)
      const other = await anotherFront()
      await other.page.goto(page.url())
      await other.reaches(50)
      const shown = await Promise.all([front.statesShown(), other.statesShown()])
      for (const [index, tab] of [front, other].entries())
        expectBeginnings([...states, ...shown[index]!], (await tab.arrivesWhole()).content)
      expect(await front.stored()).toHaveLength(2)
    })

    test('two tabs ask one after the other, and neither takes away what the other has asked', async ({ front, anotherFront }) => {
      await front.open('demo/length')
      await front.ask('First')
      await front.arrivesWhole()
      const other = await anotherFront()
      await other.page.goto(front.page.url())
      await expect(other.answers).toHaveCount(1)
      await front.ask('Second')
      await expect(front.answers).toHaveCount(2)
      await front.arrivesWhole(2)
      await other.ask('Third')
      await expect(other.answers).toHaveCount(2)
      await other.arrivesWhole(3)
      const questions = (await front.stored()).filter(({ role }) => role === 'user')
      expect(questions.map(({ content }) => content)).toEqual(['First', 'Second', 'Third'])
    })

    test('stop keeps what has come, and another answer takes its place', async ({ front, page, relay }) => {
      await front.open('demo/long')
      await front.ask('Everything, please')
      await front.reaches(200)
      await front.stop.click()
      await front.ends('stopped')
      await expectAccessible(page)
      const stored = await front.stored()
      expect(stored[1]).toMatchObject({ status: 'stopped', content: await front.text() })
      await page.reload()
      await front.ends('stopped')

      await front.button('Regenerate').click()
      await expect(front.stop).toBeVisible()
      await front.reaches(100)
      await front.stop.click()
      await front.ends('stopped')
      await expect(front.answers).toHaveCount(1)
      expect(await front.stored()).toHaveLength(2)
      expect((await front.stored())[1]!.id).not.toBe(stored[1]!.id)
      expect(relay.generations(front.id())).toBe(2)
      expect((await relay.counts()).replies_in_progress).toBe(0)
    })

    test('stop before the first token, and before the question has arrived', async ({ front, page, relay }) => {
      await front.open('demo/silent')
      await front.ask('Say nothing')
      await expect.poll(async () => (await relay.counts()).replies_in_progress).toBe(1)
      await expectAccessible(page) // while it waits
      await front.stop.click()
      await expect(front.stop).toHaveCount(0)
      expect((await front.stored()).map(({ status }) => status)).toEqual(['complete', 'stopped'])

      const release = await hold(page, 'POST', messages)
      await front.ask('And now?')
      await front.stop.click()
      release()
      await expect(front.stop).toHaveCount(0)
      await expect.poll(async () => (await front.stored()).map(({ status }) => status)).toEqual(['complete', 'stopped', 'complete', 'stopped'])
      expect((await relay.counts()).replies_in_progress).toBe(0)
    })

    test('an edit takes the place of the question and of what followed it, more than once', async ({ front, page }) => {
      await front.open('demo/length')
      await front.ask('First')
      await front.arrivesWhole()
      const [first] = await front.stored()
      await front.ask('Original')
      await expect(front.answers).toHaveCount(2)
      await front.arrivesWhole(2)
      await front.edit('Edited', () => expectAccessible(page))
      await expect(front.answer).toContainText('Edited')
      await front.arrivesWhole(3)
      await front.edit('Again')
      await expect(front.answer).toContainText('Again')
      await front.arrivesWhole(4)
      const shown = ['First', 'Again']
      await expect(front.questions).toContainText(shown)
      const stored = await front.stored()
      expect(stored.filter(({ role }) => role === 'user').map(({ content }) => content)).toEqual(shown)
      expect(stored[0]!.id).toBe(first!.id)
      await page.reload()
      await expect(front.questions).toContainText(shown)
      await front.edit('After a reload')
      await expect(front.answer).toContainText('After a reload')
      await front.arrivesWhole(5)
      expect(await front.stored()).toHaveLength(4)
    })

    test('a rate limit says how long to wait', async ({ front, page }) => {
      await front.open('demo/rate-limited')
      await front.ask('Now!')
      await expect(front.alert).toContainText('A rate limit is reached')
      await expect(front.button(/^Try again in \d+ s/)).toBeDisabled()
      await expectAccessible(page)
      await page.reload()
      await expect(front.alert).toContainText('A rate limit is reached')
      await expect(front.stop).toHaveCount(0)
      expect(front.relay.generations(front.id())).toBe(1)
    })

    test('an answer that is cut off upstream keeps its text, and can be had again', async ({ front, page }) => {
      await front.open('demo/cut-off')
      await front.ask('Break')
      await front.ends('failed')
      await expect(front.alert).toContainText('connection to upstream broke')
      await expectAccessible(page)
      const [, failed] = await front.stored()
      expect(await front.text()).toBe(failed!.content)
      await page.reload()
      await front.ends('failed')
      await expect(front.alert).toContainText('connection to upstream broke')
      expect(await front.text()).toBe(failed!.content)
      await front.button('Try again').click()
      await expect.poll(async () => (await front.stored())[1]?.id).not.toBe(failed!.id)
      await front.ends('failed')
      expect(await front.stored()).toHaveLength(2)
      expect(front.relay.generations(front.id())).toBe(2)
    })

    test.describe('when a relay with a file restarts', () => {
      test.use({ settings: inFile, mayComplain: /net::ERR_|Failed to load resource/ })

      test('an answer in the middle keeps what was seen of it, says so, and can be had again', async ({ front, page, relay }) => {
        await front.open('demo/echo')
        await front.ask(question)
        await front.reaches(50)
        const seen = await front.text()
        await relay.process.stop('SIGKILL')
        await relay.process.start()
        await front.ends('failed')
        const stored = await front.stored()
        expect(stored.map(({ status }) => status)).toEqual(['complete', 'failed'])
        for (const load of [1, 2]) {
          await expect(front.alert).toContainText('restarted')
          expect(await front.text()).toBe(stored[1]!.content)
          if (load === 1) await page.reload()
          await front.ends('failed')
        }
        expect(stored[1]!.content.slice(0, seen.length)).toBe(seen)
        await front.button('Try again').click()
        await front.reaches(50)
        await front.arrivesWhole(2)
        expect(await front.stored()).toHaveLength(2)
      })
    })

    test('what the relay tells of an answer at its end is shown: who answered, what it cost, its sources', async ({ front, page }) => {
      const source = { type: 'url_citation', url: 'https://example.com/sky', title: 'The sky', start_index: null, end_index: null }
      const told = { served_model: 'vendor/sky-1', provider: 'Vendor', usage: { completion_tokens: 3, cost: 0.0012 } }
      const events = [
        { event: 'start', message_id: 'r', model: 'openrouter/auto' },
        { content: 'It scatters.' },
        { done: true, message_id: 'r', status: 'complete', annotations: [source, source], ...told },
      ]
      await page.route(messages, (route) => {
        if (route.request().method() !== 'POST') return route.fallback()
        const body = events.map(({ event = 'message', ...data }, id) => `event: ${event}\ndata: ${JSON.stringify(data)}\nid: r:${id}\n\n`)
        return route.fulfill({ contentType: 'text/event-stream', headers: { 'Access-Control-Allow-Origin': '*' }, body: body.join('') })
      })
      await front.open('demo/length')
      await front.ask('Why is the sky blue?')
      await front.ends('complete')
      await expect(front.answer.locator('p')).toHaveText(['It scatters.'])
      await expect(front.answer.getByRole('link')).toHaveText(['The sky'])
      await expect(front.answer).toContainText('vendor/sky-1 · Vendor · 3 tokens · $0.0012')
      await expectAccessible(page)
    })

    test('an impatient person, who sends twice, leaves in the middle and comes back, has asked once', async ({ front, page }) => {
      await front.open('demo/echo')
      await front.box.fill(question)
      await front.send.dblclick()
      await front.reaches(30)
      const address = page.url()
      await page.evaluate(() => (location.hash = ''))
      await expect(front.questions).toHaveCount(0)
      await page.goto(address)
      await front.reaches(30)
      await front.arrivesWhole()
      expect(await front.stored()).toHaveLength(2)
    })

    test.describe('where the relay refuses', () => {
      test.use({ mayComplain: /Failed to load resource/, settings: { MAX_MESSAGES: '3' } })

      test('a question, its reason is shown, and nothing is lost', async ({ front, page }) => {
        await front.open('demo/length')
        await front.ask('First')
        await front.arrivesWhole()
        await front.ask('One too many')
        await expect(front.alert).toContainText('MAX_MESSAGES is 3')
        await expectAccessible(page)
        await front.button('Try again').click()
        await expect(front.alert).toContainText('MAX_MESSAGES is 3')
        expect(await front.stored()).toHaveLength(2)
        await page.reload()
        await expect(front.questions).toHaveCount(1)
        await front.edit('Only')
        await expect(front.answer).toContainText('Only')
        await front.arrivesWhole(2)
        expect((await front.stored()).map(({ content }) => content)[0]).toBe('Only')
      })

      test('a conversation that another tab has deleted, its text stays', async ({ front, relay }) => {
        await front.open('demo/echo')
        await front.ask(question)
        await front.reaches(50)
        await relay.delete(front.id())
        await expect(front.stop).toHaveCount(0)
        const text = await front.text()
        expect(`You asked: ${question}`.slice(0, text.length)).toBe(text.slice(0, `You asked: ${question}`.length))
        await front.ask('And now?')
        await expect(front.alert).toContainText('conversation')
      })
    })

    test.describe('on a network that breaks', () => {
      test.use({ mayComplain: /net::ERR_|Failed to load resource/ })

      test('two resets in the middle lose nothing and double nothing', async ({ front, cable }) => {
        await front.open('demo/echo')
        await front.ask(question)
        await front.reaches(10)
        const states = front.statesShown()
        for (const length of [30, 150]) {
          await front.reaches(length)
          cable.cut()
          cable.mend()
        }
        expectBeginnings(await states, (await front.arrivesWhole()).content)
      })

      test('a tab that was hidden, and lost its connection meanwhile, has all of the answer when it is seen', async ({ front, cable }) => {
        await front.open('demo/echo')
        await front.ask(question)
        await front.reaches(20)
        await front.hide()
        cable.cut()
        await expect.poll(async () => (await front.relay.counts()).replies_in_progress).toBe(0)
        cable.mend()
        await front.hide(false)
        await front.arrivesWhole()
        expect(await front.stored()).toHaveLength(2)
      })

      for (const [fate, isTaken] of [['before', false], ['after', true]] as const) {
        test(`a question that is lost ${fate} the relay has taken it is asked once`, async ({ front, page, relay }) => {
          const lost = isTaken ? { takenBy: relay } : {}
          await lose(page, 'POST', /\/conversations$/, lost)
          await lose(page, 'POST', messages, lost)
          await front.open('demo/length')
          await front.ask('Once?')
          await front.arrivesWhole()
          expect(await relay.counts()).toMatchObject({ conversations: 1, messages: 2 })
          await expect(front.alert).toHaveCount(0)
        })
      }
    })
  })
}

for (const frontName of ['ai-sdk on ai 7', 'tanstack-ai'] as const) {
  test.describe(frontName, () => {
    test.use({ frontName, mayComplain: /Failed to load resource/ })

    test('says why where the address has an id that no conversation can have', async ({ front, page, relay }) => {
      await page.goto('/#what%3F%20../no')
      await front.box.fill('Where am I?')
      await front.send.click()
      await expect(front.alert).toContainText(/The request|id/)
      await expect(front.stop).toHaveCount(0)
      expect((await relay.counts()).conversations).toBe(0)
    })
  })
}

for (const frontName of ['the README of ai-sdk', 'the README of tanstack-ai'] as const) {
  test.describe(frontName, () => {
    test.use({ frontName, mayComplain: /404 \(Not Found\)/ }) // a new conversation isn't there yet

    test('is a page that streams an answer, which survives a reload', async ({ front, page, relay }) => {
      await page.goto('/')
      await front.box.fill(question)
      await front.box.press('Enter')
      await expect(page.locator('p').nth(1)).toContainText(' w9')
      await page.reload()
      await expect(page.locator('p').nth(1)).toContainText(/w19.*trouble\.$/s)
      await expectAccessible(page)
      expect(await page.locator('p').nth(1).textContent()).toBe((await front.stored())[1]!.content)
      expect(relay.generations(front.id())).toBe(1)
    })
  })
}

for (const frontName of ['assistant-ui', 'assistant-ui on the AI SDK'] as const) {
  test.describe(`the threads of ${frontName}`, () => {
    test.use({ frontName })

    test('are the relay’s conversations, and one that is left goes on', async ({ front, page, relay }) => {
      await front.open('demo/echo')
      await front.ask(question)
      await front.reaches(20)
      const id = front.id()
      const threads = page.getByRole('navigation', { name: 'Conversations' })
      await page.getByRole('button', { name: 'New chat' }).first().click()
      await expect(front.questions).toHaveCount(0)
      await front.ask('Meanwhile')
      await front.arrivesWhole()
      await expect(threads.getByRole('button', { name: /^Repeat/ })).toBeVisible()
      await expectAccessible(page)
      await threads.getByRole('button', { name: /^Repeat/ }).click()
      await expect.poll(() => front.id()).toBe(id)
      await front.reaches(20)
      await front.arrivesWhole()
      await threads.getByRole('button', { name: 'Delete' }).first().click()
      await expect.poll(async () => (await relay.counts()).conversations).toBe(1)
      await page.reload()
      await expect(threads.getByRole('button', { name: /^(Repeat|Meanwhile)/ })).toHaveCount(1)
    })

    test.describe('that nobody has made', () => {
      test.use({ mayComplain: /404 \(Not Found\)|thread list switch failed/ })

      test('are new ones', async ({ front, page, relay }) => {
        await page.goto('/?model=demo/length#nowhere')
        await front.ask('Where am I?')
        await front.arrivesWhole()
        expect((await relay.counts()).conversations).toBe(1)
      })
    })

    test('are renamed at the relay', async ({ front, page, relay }) => {
      await front.open('demo/length')
      await front.ask('Something')
      await front.arrivesWhole()
      const threads = page.getByRole('navigation', { name: 'Conversations' })
      await threads.getByRole('button', { name: 'Rename' }).click()
      await threads.getByRole('textbox', { name: 'Title' }).fill('Of the sea')
      await expectAccessible(page)
      await threads.getByRole('button', { name: 'Save' }).click()
      await expect(threads.getByRole('button', { name: 'Of the sea' })).toBeVisible()
      await expect.poll(async () => (await relay.conversation(front.id())).title).toBe('Of the sea')
      await page.reload()
      await expect(threads.getByRole('button', { name: 'Of the sea' })).toBeVisible()
    })
  })
}
