-- Asks for the paths given after `--`, one after the other, and ends with one line of figures for a program. A first
-- argument `body=N` makes each request a POST of N bytes.

local requests = {}
local at = 0

function init(args)
  local first = 1
  local size = args[1] and args[1]:match("^body=(%d+)$")
  if size then
    first = 2
    wrk.method = "POST"
    wrk.body = string.rep("x", tonumber(size))
  end
  for index = first, #args do
    requests[#requests + 1] = wrk.format(wrk.method, args[index])
  end
  if #requests > 0 then
    -- Defined only if needed: without it, wrk sends one fixed request, which costs less.
    function request()
      at = at % #requests + 1
      return requests[at]
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("homeport-benchmark %d %d %d %d %d\n",
    summary.requests, summary.duration, failed, latency:percentile(50), latency:percentile(99)))
end
