import { describe, expect, it } from 'vitest';
import { placeOf } from './router';

describe('places', () => {
  it.each([
    ['/', '', { page: 'live', anchor: '' }],
    ['/policies', '#classes.1.max_wait_s', { page: 'policies', anchor: 'classes.1.max_wait_s' }],
    ['/sign-in', '', { page: 'sign-in', anchor: '' }],
    ['/policies', '#100%', { page: 'policies', anchor: '' }],
    ['/nowhere', '', { page: 'live', anchor: '' }],
  ])('%s%s', (path, hash, place) => {
    expect(placeOf(path, hash)).toEqual(place);
  });
});
