import { expect, type Locator, type Page } from '@playwright/test'
import type { Message, Relay } from './relay'

/** The example in one page, as a person works with it, and what the relay has stored of it. */
export class Chat {
  readonly box: Locator
  readonly send: Locator
  readonly stop: Locator
  readonly model: Locator
  readonly questions: Locator
  readonly answers: Locator
  /** The last one. */
  readonly answer: Locator
  /** Of the last answer, without the reasoning. */
  readonly paragraphs: Locator
  readonly notice: Locator

  constructor(
    readonly page: Page,
    readonly relay: Relay,
  ) {
    this.box = page.getByRole('textbox', { name: 'Message', exact: true })
    this.send = page.getByRole('button', { name: 'Send', exact: true })
    this.stop = page.getByRole('button', { name: 'Stop', exact: true })
    this.model = page.getByRole('combobox', { name: 'Model', exact: true })
    this.questions = page.getByRole('article', { name: 'Your message' })
    this.answers = page.getByRole('article', { name: /^Answer of / })
    this.answer = this.answers.last()
    this.paragraphs = this.answer.locator('> .markdown p')
    this.notice = page.locator('.notice')
  }

  /** An empty conversation that the relay already has. */
  async openExisting(conversation: { default_model?: string; title?: string }) {
    await this.page.goto(`/#${await this.relay.create(conversation)}`)
    await expect(this.model).not.toHaveValue('')
  }

  /** A new conversation with this model, which the first question will make. */
  async open(model: string) {
    await this.page.goto('/')
    await this.pick(model)
  }

  async pick(model: string) {
    await this.model.click()
    await this.model.fill(model)
    await this.page.getByRole('option').filter({ hasText: new RegExp(`${model} ·`) }).click()
    await expect(this.model).toHaveAttribute('aria-expanded', 'false')
  }

  /** What the page sees when its tab goes behind another one, which headless Chromium doesn't do. */
  async hide(hidden = true) {
    await this.page.evaluate((hidden) => {
      Object.defineProperty(document, 'hidden', { configurable: true, value: hidden })
      document.dispatchEvent(new Event('visibilitychange', { bubbles: true }))
    }, hidden)
  }

  async ask(question: string) {
    await this.box.fill(question)
    await this.send.click()
    await expect(this.questions.last()).toContainText(question)
  }

  /** Returns when the last answer has so many characters. */
  async reaches(length: number) {
    await expect.poll(() => this.text().then((text) => text.length)).toBeGreaterThanOrEqual(length)
  }

  /** Returns when the last answer has ended like this. */
  async ends(status: Message['status']) {
    await expect(this.answer).toHaveAttribute('data-status', status)
    await expect(this.stop).toHaveCount(0)
    await expect(this.answer.locator('[aria-busy=true]')).toHaveCount(0) // a long text lags behind
  }

  /** The last answer's text, without what stands between its paragraphs; empty if there is none yet. */
  async text(): Promise<string> {
    return (await this.paragraphs.allTextContents()).join('')
  }

  id(): string {
    return new URL(this.page.url()).hash.slice(1)
  }

  stored(): Promise<Message[]> {
    return this.relay.messages(this.id())
  }

  /** The last answer is in the page as it is stored, to the character; it must be made of plain paragraphs. */
  async showsWhatIsStored(): Promise<Message> {
    const answer = (await this.stored()).at(-1)
    expect(answer?.role).toBe('assistant')
    const paragraphs = answer!.content.trim().split('\n\n')
    await expect.poll(() => this.paragraphs.allTextContents()).toEqual(paragraphs)
    return answer!
  }

  /** All states of the last answer's text that the page shows until the answer ends. */
  statesShown(): Promise<string[]> {
    return this.answer.evaluate((answer: HTMLElement) => {
      const text = () => [...answer.querySelectorAll(':scope > .markdown p')].map((p) => p.textContent).join('')
      const states = [text()]
      return new Promise<string[]>((resolve) => {
        const onChange = () => {
          if (text() !== states.at(-1)) states.push(text())
          if (answer.dataset.status !== 'streaming') resolve(states)
        }
        new MutationObserver(onChange).observe(answer, {
          subtree: true,
          childList: true,
          characterData: true,
          attributes: true,
        })
        onChange()
      })
    })
  }
}

/** The same as `expectBeginnings`, of a text whose paragraphs are shown as paragraphs. */
export const expectGrowth = (states: string[], { content }: Message) => expectBeginnings(states, content.replaceAll('\n\n', ''))

/** Every state is a beginning of the text, and none is shorter than the one before: nothing lost, doubled or taken back. */
export function expectBeginnings(states: string[], text: string) {
  for (const [index, state] of states.entries()) {
    expect(state).toBe(text.slice(0, state.length))
    expect(state.length).toBeGreaterThanOrEqual(states[index - 1]?.length ?? 0)
  }
}

/** So many words: a demo model repeats 25 a second, which leaves time for things to happen meanwhile. */
export const words = (count: number) => Array.from({ length: count }, (_, number) => `w${number}`).join(' ')
