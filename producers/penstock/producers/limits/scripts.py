"""Redis scripts for limits; each runs atomically. All times are microseconds on Redis' own clock.

| key (after `{prefix}:limits`) | holds |
| --- | --- |
| (nothing) | hash: rule -> `most interval tolerance`; written by workers, read by dispatchers, who know no kinds |
| `:text` | hash: rule -> what people read, as declared |
| `:shares` | hash: rule -> JSON, hash of a share -> numbers that an operator set for it |
| `:since` | since when it has been asked without a longer silence |
| `:asked` | when it was asked last |
| `:busy` | set: the workers that run something, as far as known |
| `:wakes` | sorted set: each slot that jobs wait for -> when to look whether it is free |
| `:held:{slot}` | sorted set: `fence/job` that runs, or `w/job` that was woken and is on its way -> end of its lease |
| `:next:{slot}` | of a rate: the theoretical arrival time |

Concurrency is the size of `held`. A rate is the generic cell rate algorithm (GCRA, in its virtual scheduling form:
ITU-T I.371, annex A.1): one number, the time at which the next job would arrive if all came evenly spread.

A worker that runs jobs renews them every quarter of a lease. After a silence of half a lease, in which leases may have
ended for no other reason than that Redis was down, and where Redis is new or has lost its data, no job is admitted for
another half, in which every worker renews what it runs. Workers that stopped in order ran nothing, and need no such
wait.

No job overtakes: while jobs wait for a slot, only those that the dispatcher has woken, the oldest first, are admitted,
and a slot is kept for each of them until it comes or its lease has ended. They come with slots kept by one rule only;
the others must be free, which is why a job that waits for one rule never keeps slots of another.
"""

from __future__ import annotations

# A Redis at its maxmemory refuses commands that need memory, but not after a first write of the same script: jobs that
# have limits drain from it like others.
_START = """
local base = KEYS[1]
redis.call('DEL', base .. ':none')
local wakes = base .. ':wakes'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function int(number) return string.format('%.0f', number) end
local function held(slot) return base .. ':held:' .. slot end
-- A rate was made faster where it is further off than `longest`: the times of the slower one do not count.
local function following(slot, longest)
  local arrival = tonumber(redis.call('GET', base .. ':next:' .. slot)) or 0
  if longest and arrival > now + longest then
    arrival = now + longest
    redis.call('SET', base .. ':next:' .. slot, int(arrival), 'PX', int(longest / 1000 + 1000))
  end
  return math.max(arrival, now)
end
local function sweep(slot) redis.call('ZREMRANGEBYSCORE', held(slot), '-inf', int(now)) end
local function keep(slot, member, lease)
  redis.call('ZADD', held(slot), int(now + lease), member)
  redis.call('PEXPIRE', held(slot), int(lease / 500))
end
local function first(slot)
  local found = redis.call('ZRANGE', held(slot), 0, 0, 'WITHSCORES')
  return tonumber(found[2]) or now
end
local function heard(lease)
  local asked = tonumber(redis.call('GET', base .. ':asked'))
  if not asked or (now - asked > lease / 2 and redis.call('EXISTS', base .. ':busy') == 1) then
    redis.call('SET', base .. ':since', int(now))
    redis.call('DEL', base .. ':busy')
  end
  redis.call('SET', base .. ':asked', int(now))
end
local function freed(slot)
  redis.call('ZADD', wakes, 'XX', int(now), slot)
end
"""

ENTER = (
    _START
    + """
-- Let a job in by all of its rules, or by none. ARGV: what it is if woken, and if running; lease, patience, worker;
-- for each rule: slot, most, interval, tolerance (most = 0: a rate).
-- Returns {1, wait} or {0, number of the rule that holds it back, when it may run}.
local job, member = ARGV[1], ARGV[2]
local lease, patience = tonumber(ARGV[3]), tonumber(ARGV[4])
heard(lease)
local open = (redis.call('GET', base .. ':since') or 0) + lease / 2
local woken = false
for i = 6, #ARGV, 4 do
  sweep(ARGV[i])
  if redis.call('ZSCORE', held(ARGV[i]), job) then woken = true end
end
local full, at, start = 0, nil, now
for i = 6, #ARGV, 4 do
  local slot, most = ARGV[i], tonumber(ARGV[i + 1])
  local waited_for = tonumber(redis.call('ZSCORE', wakes, slot))
  local longest = ARGV[i + 2] + ARGV[i + 3] + patience
  if open > now then
    full, at = i, open
  elseif waited_for and not woken then
    full, at = i, waited_for
  elseif most > 0 then
    local mine = redis.call('ZSCORE', held(slot), job) or redis.call('ZSCORE', held(slot), member)
    if not mine and redis.call('ZCARD', held(slot)) >= most then full, at = i, first(slot) end
  else
    local free = following(slot, longest) - tonumber(ARGV[i + 3])
    if free > now + (woken and patience or 0) then full, at = i, free end
    start = math.max(start, free)
  end
  if full > 0 then break end
end
if full > 0 then
  for i = 6, #ARGV, 4 do
    if redis.call('ZREM', held(ARGV[i]), job, member) > 0 then freed(ARGV[i]) end
  end
  local slot = ARGV[full]
  local look = at
  if tonumber(ARGV[full + 1]) == 0 then look = math.max(at - patience / 2, now) end
  local before = tonumber(redis.call('ZSCORE', wakes, slot))
  if not before or look < before then redis.call('ZADD', wakes, int(look), slot) end
  return {0, (full - 6) / 4, int(at)}
end
for i = 6, #ARGV, 4 do
  local slot = ARGV[i]
  redis.call('ZREM', held(slot), job)
  if tonumber(ARGV[i + 1]) > 0 then
    keep(slot, member, lease)
    redis.call('SADD', base .. ':busy', ARGV[5])
  else
    local arrival = following(slot, ARGV[i + 2] + ARGV[i + 3] + patience) + tonumber(ARGV[i + 2])
    redis.call('SET', base .. ':next:' .. slot, int(arrival), 'PX', int((arrival - now) / 1000 + 1000))
  end
end
return {1, int(start - now)}
"""
)

LEAVE = (
    _START
    + """
-- ARGV: count of slots that jobs now wait for; these; then slot, member of what has ended.
local count = tonumber(ARGV[1])
for i = 2, count + 1 do redis.call('ZADD', wakes, int(now), ARGV[i]) end
for i = count + 2, #ARGV, 2 do
  if redis.call('ZREM', held(ARGV[i]), ARGV[i + 1]) > 0 then freed(ARGV[i]) end
end
"""
)

WANT = _START + "for _, slot in ipairs(ARGV) do redis.call('ZADD', wakes, 'NX', 0, slot) end"

RENEW = (
    _START
    + """
-- ARGV: lease, worker, count of rules; for each: name, numbers, text, those of shares; then slot, member of what runs.
-- A running job is inserted again where Redis has lost it: it does run. After a change of numbers more may be free.
local lease, count = tonumber(ARGV[1]), tonumber(ARGV[3])
local shares, changed = base .. ':shares', {}
heard(lease)
for i = 4, 3 + 4 * count, 4 do
  local rule, numbers, own = ARGV[i], ARGV[i + 1], ARGV[i + 3]
  if redis.call('HGET', base, rule) ~= numbers or (redis.call('HGET', shares, rule) or '{}') ~= own then
    redis.call('HSET', base, rule, numbers)
    redis.call('HSET', shares, rule, own)
    changed[rule] = true
  end
  redis.call('HSET', base .. ':text', rule, ARGV[i + 2])
end
if next(changed) then
  for _, slot in ipairs(redis.call('ZRANGE', wakes, 0, -1)) do
    if changed[string.match(slot, '^(.*):')] then freed(slot) end
  end
end
for i = 4 + 4 * count, #ARGV, 2 do keep(ARGV[i], ARGV[i + 1], lease) end
redis.call(#ARGV > 3 + 4 * count and 'SADD' or 'SREM', base .. ':busy', ARGV[2])
"""
)

TAKE = (
    _START
    + """
-- Slots to look at, and how many more each lets in. ARGV: how many, lead, hold.
-- Returns slot, count, token of each that admits any. No other dispatcher gets it for `hold`.
local lead, hold = tonumber(ARGV[2]), tonumber(ARGV[3])
local found = {}
for _, slot in ipairs(redis.call('ZRANGEBYSCORE', wakes, '-inf', int(now), 'LIMIT', 0, ARGV[1])) do
  local name, share = string.match(slot, '^(.*):(.*)$')
  local rule = redis.call('HGET', base, name)
  local own = share ~= '' and redis.call('HGET', base .. ':shares', name)
  if own then rule = cjson.decode(own)[share] or rule end
  local at = now + hold
  if rule then
    sweep(slot)
    local used = redis.call('ZCARD', held(slot))
    local most, interval, tolerance = string.match(rule, '(%d+) (%d+) (%d+)')
    local free
    if tonumber(most) > 0 then
      free = tonumber(most) - used
    else
      local start = following(slot, interval + tolerance + 2 * lead) - tonumber(tolerance)
      free = math.floor((now + lead - start) / interval) + 1 - used
      at = start + used * interval - lead
    end
    if free > 0 then
      at = now + hold
      found[#found + 1] = slot
      found[#found + 1] = free
      found[#found + 1] = int(at)
    elseif used > 0 then
      at = tonumber(most) > 0 and first(slot) or math.min(at, first(slot))
    end
  end
  redis.call('ZADD', wakes, int(at), slot)
end
return found
"""
)

WAKE = (
    _START
    + """
-- Keep slots for jobs that are being woken. ARGV: slot, token of TAKE, lease, whether more wait; the jobs.
local slot = ARGV[1]
for i = 5, #ARGV do keep(slot, ARGV[i], tonumber(ARGV[3])) end
if redis.call('ZSCORE', wakes, slot) == ARGV[2] then
  if ARGV[4] == '1' then freed(slot) else redis.call('ZREM', wakes, slot) end
end
"""
)

LOOK = (
    _START
    + """
-- ARGV: slots. Returns for each when the next job may begin (of a rate), and what holds it.
local found = {}
for _, slot in ipairs(ARGV) do
  sweep(slot)
  found[#found + 1] = {int(following(slot) - now), redis.call('ZRANGE', held(slot), 0, -1)}
end
return found
"""
)
