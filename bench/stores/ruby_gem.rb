# frozen_string_literal: true

# Publishes with the Ruby library for some seconds: kind of store, URL, threads, seconds, channel,
# data. Prints JSON: publishes per second, and how long each took.

require "json"
require "uri"
require "message_bus"

kind, url, threads, seconds, channel, data = ARGV
seconds = seconds.to_f

uri = URI.parse(url)
database = uri.path.delete_prefix("/")
bus = MessageBus::Instance.new
if kind == "redis"
  bus.redis_config = { host: uri.host, port: uri.port, db: Integer(database) }
else
  options = { host: uri.host, port: uri.port, user: uri.user, dbname: database }
  bus.configure(backend: :postgres, backend_options: options)
end

clock = -> { Process.clock_gettime(Process::CLOCK_MONOTONIC) }
bus.publish(channel, data)
latencies = Queue.new
started = clock.call
workers = Array.new(threads.to_i) do
  Thread.new do
    while (before = clock.call) < started + seconds
      bus.publish(channel, data)
      latencies << clock.call - before
    end
  end
end
workers.each(&:join)
took = clock.call - started
found = Array.new(latencies.size) { latencies.pop }
$stdout.write(JSON.generate({ rate: found.size / took, latencies: found }))
$stdout.flush
exit!(0) # its threads have nothing more to do
