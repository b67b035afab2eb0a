import { expectAccessible } from './support/axe'
import { expect, test } from './support/test'

test('sources are links under the answer that open elsewhere, after a reload, too', async ({ chat, page }) => {
  await chat.open('demo/search')
  await chat.ask('What is a stream?')
  await chat.ends('complete')
  for (const again of [false, true]) {
    if (again) await page.reload()
    const links = chat.answer.getByRole('navigation', { name: 'Sources' }).getByRole('link')
    await expect(links).toHaveText(['Using_server-sent_events', 'EventSource'])
    for (const link of await links.all()) {
      await expect(link).toHaveAttribute('href', /^https:\/\/developer\.mozilla\.org\//)
      await expect(link).toHaveAttribute('rel', 'noopener noreferrer')
      await expect(link).toHaveAttribute('target', '_blank')
    }
  }
  await expectAccessible(page)
})

test('who answered is told where it isn’t the model that was asked for', async ({ chat }) => {
  await chat.open('demo/fallback')
  await chat.ask('Who are you?')
  await chat.ends('complete')
  await expect(chat.answer).toContainText('demo/fallback · answered by demo/echo-20260901 at Demo ·')
  await chat.pick('demo/length')
  await chat.ask('And you?')
  await chat.ends('complete')
  await expect(chat.answer).toContainText(/· demo\/length · \d+ tokens in/)
})

test('the cost of a conversation grows with its answers', async ({ chat, page }) => {
  await chat.open('demo/length')
  const cost = page.getByTitle('What its answers have cost')
  await expect(cost).toHaveCount(0)
  const costs: string[] = []
  for (const question of ['One', 'Two']) {
    await chat.ask(question)
    await chat.ends('complete')
    await expect(cost).not.toHaveText(costs[0] ?? '')
    costs.push((await cost.textContent()) ?? '')
  }
  expect(costs.map((cost) => Number(cost.slice(1)))).toEqual([expect.any(Number), expect.any(Number)])
  expect(Number(costs[1]?.slice(1))).toBeGreaterThan(Number(costs[0]?.slice(1)))
})

test('options are set before the first question, and changed later', async ({ chat, page }) => {
  await chat.open('demo/options')
  await page.getByRole('button', { name: 'Options' }).click()
  const form = page.getByRole('form', { name: 'Options' })
  await form.getByLabel('Effort').selectOption('low')
  await form.getByLabel('Temperature').fill('0.5')
  await form.getByLabel('Longest answer, in tokens').fill('200')
  await form.getByLabel('Search the web').check()
  await expectAccessible(page)
  await form.getByRole('button', { name: 'Save' }).click()
  await expect(form).toBeHidden()
  await chat.ask('With what?')
  await chat.ends('complete')
  expect(JSON.parse((await chat.answer.locator('code').textContent()) ?? '')).toEqual({
    reasoning: { effort: 'low' },
    temperature: 0.5,
    max_tokens: 200,
    tools: [{ type: 'openrouter:web_search' }],
  })

  await page.getByRole('button', { name: 'Options' }).click()
  await expect(form.getByLabel('Temperature')).toHaveValue('0.5')
  await expect(form.getByLabel('Search the web')).toBeChecked()
  await form.getByLabel('Effort').selectOption('the model’s own')
  await form.getByLabel('Longest answer, in tokens').fill('')
  await form.getByLabel('Search the web').uncheck()
  await form.getByRole('button', { name: 'Save' }).click()
  await expect(form).toBeHidden()
  await chat.ask('And now?')
  await chat.ends('complete')
  expect(JSON.parse((await chat.answer.locator('code').textContent()) ?? '')).toEqual({ temperature: 0.5 })
})

test('options that the panel doesn’t know stay', async ({ chat, page, relay }) => {
  const options = { seed: 7, reasoning: { effort: 'xhigh', exclude: true }, tools: [{ type: 'openrouter:datetime' }] }
  const id = await relay.create({ default_model: 'demo/options', options })
  await page.goto(`/#${id}`)
  await expect(chat.model).toHaveValue('Demo: Options')
  await page.getByRole('button', { name: 'Options' }).click()
  const form = page.getByRole('form', { name: 'Options' })
  await form.getByLabel('Temperature').fill('1')
  await form.getByRole('button', { name: 'Save' }).click()
  await expect(form).toBeHidden()
  await chat.ask('With what?')
  await chat.ends('complete')
  expect(JSON.parse((await chat.answer.locator('code').textContent()) ?? '')).toEqual({ ...options, temperature: 1 })
})

test.describe('refused', () => {
  test.use({ mayComplain: /422/ })

  test('what the relay refuses is told in the panel', async ({ page, relay }) => {
    const id = await relay.create({})
    await page.goto(`/#${id}`)
    await page.route(`**/conversations/${id}`, (route) =>
      route.request().method() === 'PATCH'
        ? route.fulfill({
            status: 422,
            contentType: 'application/problem+json',
            headers: { 'Access-Control-Allow-Origin': '*' },
            body: JSON.stringify({ detail: 'options.max_tokens must be at most 5.' }),
          })
        : route.fallback(),
    )
    await page.getByRole('button', { name: 'Options' }).click()
    const form = page.getByRole('form', { name: 'Options' })
    await form.getByLabel('Longest answer, in tokens').fill('9')
    await form.getByRole('button', { name: 'Save' }).click()
    await expect(form.getByRole('alert')).toHaveText('options.max_tokens must be at most 5.')
  })
})

for (const [model, status, words] of [
  ['demo/refusal', 'complete', "I'm sorry, but I can't help with “Anything?”."],
  ['demo/tool-call', 'failed', 'answered with tool calls and without text'],
  ['demo/image', 'failed', 'answered with images and without text'],
  ['demo/too-long', 'failed', 'context-compression'],
] as const) {
  test(`${model} is no silence`, async ({ chat }) => {
    await chat.open(model)
    await chat.ask('Anything?')
    await chat.ends(status)
    await expect(chat.answer).toContainText(words)
  })
}
