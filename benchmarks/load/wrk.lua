-- Asks for the paths given after `--`, one after the other, and ends with one line of figures for a program.

local requests = {}
local at = 0

function init(args)
  for index = 1, #args do
    requests[index] = wrk.format("GET", args[index])
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
