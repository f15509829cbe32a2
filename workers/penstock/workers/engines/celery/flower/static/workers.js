/* Flower's script refreshes a table of its own at this address, unless this is 0. */
var autorefresh = 0; // eslint-disable-line no-unused-vars
