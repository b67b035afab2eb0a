import { test } from '@playwright/test'
import { build, fronts, type FrontName } from './support/fronts'

for (const name of Object.keys(fronts) as FrontName[]) {
  test(`${name} fits its packages, and builds`, () => build(name))
}
