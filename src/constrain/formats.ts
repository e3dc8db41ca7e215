/** `format` values that are enforced, as patterns; the same that OpenAI's strict mode knows, where they are regular. */
const DATE = '(\\d{4})-(0[1-9]|1[0-2])-(0[1-9]|1\\d|2[0-8])';
const TIME = '([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)';
const BYTE = '(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)';
const LABEL = '[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?';

/** Days end at the 28th: which months are longer is no matter of patterns, and every date so written exists. */
export const FORMATS: Readonly<Record<string, string>> = {
  date: `^${DATE}$`,
  time: `^${TIME}$`,
  'date-time': `^${DATE}T${TIME}$`,
  duration: '^P(\\d{1,4}Y)?(\\d{1,2}M)?\\d{1,3}D(T\\d{1,2}H(\\d{1,2}M(\\d{1,2}S)?)?)?$',
  uuid: '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$',
  ipv4: `^${BYTE}\\.${BYTE}\\.${BYTE}\\.${BYTE}$`,
  ipv6: '^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$',
  hostname: `^${LABEL}(\\.${LABEL}){0,3}$`,
  email: `^[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,16}){0,2}@${LABEL}(\\.${LABEL}){1,2}$`,
};
