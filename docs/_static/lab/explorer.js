// The noise threshold explorer: all of it is in what every live page has.

import { Live } from "./live.js";

new Live(document.querySelector('[data-lab="explorer"]')).begin();
