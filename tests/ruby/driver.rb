# frozen_string_literal: true

# A Ruby process of the bus, driven from a test: one JSON object a line on stdin asks it to do
# something, one a line on stdout is an answer ("id") or a message it was handed ("received").
#
# ARGV: {"backend": "redis" or "postgres", "options": {...}, "site": the current site or null}

require "json"
require "logger"
require "set" # which Ruby 3.1 does not load by itself, and the gem does not either
require "message_bus"
require "message_bus/distributed_cache"

$stdout.sync = true
OUTPUT = Mutex.new

def say(what)
  OUTPUT.synchronize { $stdout.puts(JSON.generate(what)) }
end

def describe(message)
  {
    "global_id" => message.global_id.to_i, "message_id" => message.message_id.to_i,
    "channel" => message.channel, "site_id" => message.site_id, "data" => message.data,
    "user_ids" => message.user_ids, "group_ids" => message.group_ids,
    "client_ids" => message.client_ids
  }
end

# What is warned of goes to stdout as well.
class Complaints < Logger
  def initialize
    super(nil)
  end

  def add(severity, message = nil, progname = nil)
    say("warned" => (message || progname).to_s) if severity >= Logger::WARN
    true
  end
end

CACHES = Hash.new { |caches, key| caches[key] = MessageBus::DistributedCache.new(key) }

# Answers polls that do not wait, with the gem's middleware; its port. Who asks is told by headers.
def serve
  require "rack"
  require "message_bus/rack/middleware"
  require "socket"
  require "stringio"
  MessageBus.user_id_lookup { |env| env["HTTP_X_MESSAGEBUS_USER"]&.to_i }
  MessageBus.group_ids_lookup { |env| JSON.parse(env["HTTP_X_MESSAGEBUS_GROUPS"] || "[]") }
  middleware = MessageBus::Rack::Middleware.new(->(_) { [404, {}, []] })
  server = TCPServer.new("127.0.0.1", 0)
  Thread.new { loop { answer(server.accept, middleware) } }
  server.addr[1]
end

def answer(socket, middleware)
  method, target = socket.gets.split
  path, _, query = target.partition("?")
  env = {
    "REQUEST_METHOD" => method, "PATH_INFO" => path, "QUERY_STRING" => query,
    "SERVER_PROTOCOL" => "HTTP/1.1", "rack.errors" => StringIO.new
  }
  while (line = socket.gets.chomp) != ""
    name, value = line.split(": ", 2)
    env["HTTP_#{name.upcase.tr("-", "_")}"] = value
  end
  env["CONTENT_TYPE"] = env["HTTP_CONTENT_TYPE"]
  env["CONTENT_LENGTH"] = env["HTTP_CONTENT_LENGTH"]
  env["rack.input"] = StringIO.new(socket.read(env["HTTP_CONTENT_LENGTH"].to_i))
  status, headers, body = middleware.call(env)
  content = body.to_a.join
  headers = headers.merge("content-length" => content.bytesize, "connection" => "close")
  socket.write("HTTP/1.1 #{status} OK\r\n", headers.map { |each| each.join(": ") + "\r\n" }.join, "\r\n")
  socket.write(content)
ensure
  socket.close
end

def perform(request)
  case request["do"]
  when "listen"
    MessageBus.subscribe { |message| say("received" => describe(message)) }
    sleep 0.01 until MessageBus.backend_instance.subscribed
  when "is_listening"
    MessageBus.backend_instance.subscribed
  when "publish"
    options = (request["options"] || {}).transform_keys(&:to_sym)
    MessageBus.publish(request["channel"], request["data"], **options)
  when "publish_numbers"
    (1..request["count"]).map do |number|
      MessageBus.publish(request["channel"], { "from" => request["from"], "n" => number })
    end
  when "last_id"
    MessageBus.last_id(request["channel"])
  when "backlog"
    MessageBus.backlog(request["channel"], request["last_id"]).map { |each| describe(each) }
  when "global_backlog"
    MessageBus.global_backlog(request["last_id"]).map { |each| describe(each) }
  when "serve"
    serve
  when "destroy"
    MessageBus.destroy
  when "cache_open"
    CACHES[request["cache"]].identity
  when "cache_set"
    CACHES[request["cache"]][request["key"]] = request["value"]
  when "cache_delete"
    CACHES[request["cache"]].delete(request["key"])
  when "cache_clear"
    CACHES[request["cache"]].clear
  when "cache_contents"
    CACHES[request["cache"]].hash
  else
    raise ArgumentError, request["do"]
  end
end

setup = JSON.parse(ARGV.fetch(0))
options = setup["options"].transform_keys(&:to_sym)
MessageBus.configure(logger: Complaints.new)
MessageBus.site_id_lookup { setup["site"] } if setup["site"]
if setup["backend"] == "redis"
  MessageBus.configure(backend: :redis, redis_config: options)
else
  MessageBus.configure(backend: :postgres, backend_options: options)
end
say("ready" => MessageBus::VERSION)

$stdin.each_line do |line|
  request = JSON.parse(line)
  begin
    say("id" => request["id"], "result" => perform(request))
  rescue StandardError => e
    say("id" => request["id"], "error" => "#{e.class}: #{e.message}")
  end
end
exit! # its threads are asleep, and would be waited for
