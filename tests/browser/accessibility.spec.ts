import type { Page } from '@playwright/test'
import { expectAccessible } from './support/axe'
import type { Chat } from './support/chat'
import { looks } from './support/looks'
import { expect, test } from './support/test'

for (const [look, options] of Object.entries(looks)) {
  test.describe(look, () => {
    test.use(options)

    test('axe finds nothing to object to', async ({ chat, page }) => {
      await chat.open('demo/markdown')
      await expectAccessible(page)
      await chat.ask('Show me everything')
      await chat.ends('complete')
      await chat.pick('demo/reasoning')
      await chat.ask('Think')
      await chat.reaches(10)
      await expectAccessible(page) // while it is being written
      await chat.ends('complete')
      await chat.answer.locator('summary').click()
      await expectAccessible(page)
      await chat.pick('demo/error')
      await chat.ask('Fail')
      await chat.ends('failed')
      await expectAccessible(page)
      await expectNoSidewaysScrolling(page)
    })

    test('axe finds nothing in what opens', async ({ chat, page, isMobile }) => {
      await chat.open('demo/length')
      await chat.ask('A title to be listed')
      await chat.ends('complete')
      await chat.model.click()
      await expect(page.getByRole('listbox', { name: 'Models' })).toContainText('$0.1 in, $0.4 out per M')
      await expectAccessible(page)
      await chat.model.press('Escape')
      await chat.questions.getByRole('button', { name: 'Edit' }).click()
      await expectAccessible(page)
      await chat.box.press('Escape')
      if (isMobile) await page.getByRole('button', { name: 'Conversations' }).click()
      await expect(page.getByRole('navigation', { name: 'Conversations' })).toBeVisible()
      await expectAccessible(page)
      const listed = page.getByRole('listitem').filter({ has: page.locator('[aria-current]') })
      await listed.hover()
      await listed.getByRole('button', { name: /^Rename/ }).click()
      await expectAccessible(page)
      await page.keyboard.press('Escape')
      await listed.getByRole('button', { name: /^Delete/ }).click()
      await expectAccessible(page)
    })
  })
}

test('everything can be done with the keyboard alone', async ({ chat, page }) => {
  const { keyboard } = page
  await page.goto('/')
  await expect(chat.box).toBeFocused()
  await keyboard.type('Not yet')
  await tabTo(page, chat.model)
  await keyboard.press('Enter')
  await expect(chat.model).toHaveAttribute('aria-expanded', 'true')
  await keyboard.type('demo/long')
  await expect(page.getByRole('option')).toHaveCount(1)
  await keyboard.press('Enter')
  await expect(chat.model).toHaveValue('Demo: Long')

  await tabTo(page, chat.box, 'Shift+Tab')
  await keyboard.press('ControlOrMeta+A')
  await keyboard.type('One line')
  await keyboard.press('Shift+Enter')
  await keyboard.type('and another')
  await keyboard.press('Enter')
  await expect(chat.questions.locator('p')).toHaveText('One line\nand another', { useInnerText: true })
  await chat.reaches(50)
  await tabTo(page, chat.stop)
  await keyboard.press('Enter')
  await chat.ends('stopped')
  await expect(chat.box).toBeFocused()

  await pickByKeyboard(chat, 'demo/length')
  await tabTo(page, page.getByRole('button', { name: 'Regenerate', exact: true }), 'Shift+Tab')
  await keyboard.press('Space')
  await expect(chat.answer).toHaveAccessibleName('Answer of demo/length')
  await chat.ends('complete')
  await expect(chat.box).toBeFocused()

  await tabTo(page, chat.questions.getByRole('button', { name: 'Edit' }), 'Shift+Tab')
  await keyboard.press('Enter')
  await expect(chat.box).toBeFocused()
  await tabTo(page, page.getByRole('button', { name: 'Cancel' }), 'Shift+Tab')
  await keyboard.press('Enter')
  await expect(chat.box).toHaveValue('')
  await expect(chat.box).toBeFocused()
  await tabTo(page, chat.questions.getByRole('button', { name: 'Edit' }), 'Shift+Tab')
  await keyboard.press('Enter')
  await keyboard.press('ControlOrMeta+A')
  await keyboard.type('With other words')
  await keyboard.press('Enter')
  await expect(chat.questions.locator('p')).toHaveText('With other words')
  await chat.ends('complete')

  const title = 'With other words'
  await tabTo(page, page.getByRole('button', { name: `Rename ${title}` }).first(), 'Shift+Tab')
  await keyboard.press('Enter')
  await keyboard.press('ControlOrMeta+A')
  await keyboard.type('By keyboard')
  await keyboard.press('Enter')
  const link = page.getByRole('link', { name: 'By keyboard', exact: true }).first()
  await expect(link).toBeFocused()
  await tabTo(page, page.getByRole('button', { name: 'Delete By keyboard' }).first())
  await keyboard.press('Enter')
  await tabTo(page, page.getByRole('button', { name: 'Delete By keyboard for good' }), 'Shift+Tab')
  await keyboard.press('Enter')
  await expect(chat.questions).toHaveCount(0)
  await expect(page.getByRole('button', { name: 'New conversation' })).toBeFocused()
})

test('a screen reader hears that an answer is coming, and then the answer once', async ({ chat, page }) => {
  const announced = page.getByRole('status').last()
  await chat.open('demo/echo')
  await chat.ask('Say it')
  await expect(announced).toHaveText('The answer is coming.')
  await expect(chat.answer).toHaveAttribute('aria-busy', 'true')
  await chat.ends('complete')
  await expect(announced).toContainText('You asked: Say it')
  await expect(chat.answer).toHaveAttribute('aria-busy', 'false')
})

async function pickByKeyboard(chat: Chat, model: string) {
  await tabTo(chat.page, chat.model)
  await chat.page.keyboard.press('ArrowDown')
  await chat.page.keyboard.type(model)
  await chat.page.keyboard.press('Enter')
}

/** Presses Tab until this has the focus. */
async function tabTo(page: Page, target: ReturnType<Page['locator']>, key: 'Tab' | 'Shift+Tab' = 'Tab') {
  await expect(target).toBeVisible()
  for (let presses = 0; presses < 60; presses++) {
    if (await target.evaluate((element) => element === document.activeElement)) return
    await page.keyboard.press(key)
  }
  await expect(target, `reached with ${key}`).toBeFocused()
}

async function expectNoSidewaysScrolling(page: Page) {
  expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0)
}
