import { expect, type Locator, type Page } from '@playwright/test'
import { withCable, type Cable } from './cable'
import { built, type FrontName } from './fronts'
import { withSite, type Site } from './origins'
import { withRelay, type Message, type OwnRelay } from './relay'
import { test, withDetours } from './test'

/** A page that uses an adapter, as a person works with it, and what the relay has stored of it. */
export class Front {
  readonly box: Locator
  readonly send: Locator
  readonly stop: Locator
  readonly questions: Locator
  readonly answers: Locator
  /** The last one. */
  readonly answer: Locator
  readonly alert: Locator

  constructor(
    readonly page: Page,
    readonly relay: OwnRelay,
  ) {
    this.box = page.getByRole('textbox', { name: 'Message', exact: true })
    this.send = page.getByRole('button', { name: 'Send', exact: true })
    this.stop = page.getByRole('button', { name: 'Stop', exact: true })
    this.questions = page.getByRole('article', { name: 'Your message' })
    this.answers = page.getByRole('article', { name: 'Answer' })
    this.answer = this.answers.last()
    this.alert = page.getByRole('alert')
  }

  /** A new conversation with this model, which the first question will make. */
  async open(model: string) {
    await this.page.goto(`/?model=${model}`)
    await expect(this.box).toBeVisible()
  }

  async ask(question: string) {
    await this.box.fill(question)
    await this.send.click()
    await expect(this.questions.last()).toContainText(question)
  }

  /** Edits the last question; `meanwhile`, with the form open. */
  async edit(question: string, meanwhile = async () => {}) {
    await this.questions.last().hover()
    await this.questions.last().getByRole('button', { name: 'Edit' }).click()
    await meanwhile()
    await this.page.getByRole('textbox', { name: 'Edited message' }).or(this.box).first().fill(question)
    await this.button('Send again').or(this.send).first().click()
    await expect(this.questions.last()).toContainText(question)
  }

  /** What the page sees when its tab goes behind another one, which headless Chromium doesn't do. */
  async hide(hidden = true) {
    await this.page.evaluate((hidden) => {
      Object.defineProperty(document, 'hidden', { configurable: true, value: hidden })
      Object.defineProperty(document, 'visibilityState', { configurable: true, value: hidden ? 'hidden' : 'visible' })
      document.dispatchEvent(new Event('visibilitychange', { bubbles: true }))
    }, hidden)
  }

  button(name: string | RegExp): Locator {
    return this.page.getByRole('button', { name })
  }

  /** Returns when the last answer has so many characters. */
  async reaches(length: number) {
    await expect.poll(async () => (await this.text()).length).toBeGreaterThanOrEqual(length)
  }

  /** Returns when the last answer has ended like this. */
  async ends(status: Message['status']) {
    await expect(this.answer).toHaveAttribute('data-status', status)
    await expect(this.stop).toHaveCount(0)
  }

  /** The last answer's; empty if there is none yet. */
  async text(): Promise<string> {
    return (await this.answer.locator('p').allTextContents()).join('')
  }

  id(): string {
    return new URL(this.page.url()).hash.slice(1)
  }

  stored(): Promise<Message[]> {
    return this.relay.messages(this.id())
  }

  /** The last answer is in the page as it is stored, to the character; one generation was made for each of so many. */
  async arrivesWhole(generations = 1) {
    await this.ends('complete')
    const answer = (await this.stored()).at(-1)
    expect(answer?.role).toBe('assistant')
    expect(await this.text()).toBe(answer!.content)
    expect(this.relay.generations(this.id())).toBe(generations)
    return answer!
  }

  /** All states of the last answer's text that the page shows until the answer ends. */
  statesShown(): Promise<string[]> {
    return this.page.evaluate(() => {
      const answer = () => [...document.querySelectorAll<HTMLElement>('[aria-label="Answer"]')].at(-1)
      const text = () => [...(answer()?.querySelectorAll('p') ?? [])].map((p) => p.textContent).join('')
      const states = [text()]
      return new Promise<string[]>((resolve) => {
        const onChange = () => {
          if (text() !== states.at(-1)) states.push(text())
          if ((answer()?.dataset.status ?? 'streaming') !== 'streaming') resolve(states)
        }
        new MutationObserver(onChange).observe(document, { subtree: true, childList: true, characterData: true, attributes: true })
        onChange()
      })
    })
  }
}

type Fixtures = {
  frontName: FrontName
  settings: Record<string, string>
  relay: OwnRelay
  cable: Cable
  front: Front
  anotherFront: () => Promise<Front>
}

/** What a worker's tests share, one after the other: each of them takes a second to start. */
type Shared = { wire: Cable; site: Site; sharedRelay: OwnRelay }

/** With a page that uses an adapter on localhost:3000, which the relay lists, and an empty relay behind a cable. */
export const testFront = test.extend<Fixtures, Shared>({
  wire: [({}, use) => withCable(use), { scope: 'worker' }],
  site: [({}, use) => withSite(use), { scope: 'worker' }],
  sharedRelay: [({}, use) => withRelay({}, use), { scope: 'worker' }],
  launchOptions: [
    ({ launchOptions, wire, site }, use) => use(withDetours(launchOptions, { 'localhost:8001': wire.port, 'localhost:3000': site.port })),
    { scope: 'worker' },
  ],
  frontName: ['ai-sdk on ai 7', { option: true }],
  settings: [{}, { option: true }],
  baseURL: async ({ frontName, site }, use) => {
    site.folder = built(frontName)
    await use('http://localhost:3000')
  },
  relay: async ({ settings, sharedRelay }, use) => {
    if (Object.keys(settings).length > 0) return withRelay(settings, use)
    await sharedRelay.clear()
    await use(sharedRelay)
  },
  cable: async ({ wire, relay }, use) => {
    wire.plugInto(relay.port)
    await use(wire)
  },
  front: ({ page, relay, cable: _ }, use) => use(new Front(page, relay)),
  anotherFront: ({ context, relay }, use) => use(async () => new Front(await context.newPage(), relay)),
})
