// Whether the signed-in account may change anything. The server decides; the pages only say so beforehand.

import { createContext, useContext } from 'react';

export const RightsContext = createContext(true);

export function useMayOperate(): boolean {
  return useContext(RightsContext);
}

export const MAY_LOOK = 'Your account may look, but change nothing: it lacks the permission “publish_policy”.';
