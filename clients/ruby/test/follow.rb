# frozen_string_literal: true

# Driven by the tests of connections that break: follows /a from the beginning, one line of output
# for each message and notice; each line of input is published to /b.

require_relative "../lib/messagebusd/client"

$stdout.sync = true
bus = Messagebusd::Client.new(ENV.fetch("MESSAGEBUSD_URL"), key: ENV.fetch("MESSAGEBUSD_KEY"))
say = ->(what) { $stdout.puts(JSON.generate(what)) }
bus.subscribe({ "/a" => 0 }, on_notice: ->(notice) { say.({ notice: notice.class.name, **notice.to_h }) }) do |message|
  say.({ data: message.data })
end
$stdin.each_line do |line|
  published = bus.publish("/b", line.chomp)
  say.({ published: published.message_id, repeated: published.repeated })
end
