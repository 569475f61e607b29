# frozen_string_literal: true

require "json"
require "net/http"
require "openssl"
require "uri"

module Messagebusd
  class Client
    # Requests over connections that are kept, and what their answers mean. Whatever the network
    # raises becomes ConnectionFailed here.
    class HTTP # :nodoc: all
      NETWORK_ERRORS = [
        SystemCallError, SocketError, IOError, Timeout::Error, OpenSSL::SSL::SSLError,
        Net::HTTPBadResponse, Net::HTTPHeaderSyntaxError, Net::ProtocolError
      ].freeze
      NOT_REACHED = [502, 504].freeze # a proxy did not reach the daemon
      MAX_BYTES = 64 * 1024 * 1024
      MAX_DETAIL = 500
      MAX_RETRY_AFTER = 3600.0

      Answer = Struct.new(:status, :headers, :body) do
        # The answer's JSON object. Raises UnexpectedAnswer.
        def object
          document = HTTP.parse(body)
          raise UnexpectedAnswer, "the answer is not a JSON object" unless document.is_a?(Hash)

          document
        end
      end

      # The daemon bounds how deep data is nested, just below where Ruby would by default.
      def self.parse(text)
        JSON.parse(text.dup.force_encoding(Encoding::UTF_8), max_nesting: false)
      rescue JSON::ParserError, EncodingError => e
        raise UnexpectedAnswer, "this is not JSON: #{e.message[0, 100]}"
      end

      def initialize(url, key, timeout, ssl_context_options)
        @uri = URI(url)
        unless @uri.is_a?(URI::HTTP) && @uri.host && !@uri.query && !@uri.fragment
          raise ArgumentError, "the URL must be http:// or https://, with a host and no query"
        end
        @path = @uri.path.chomp("/")
        @key = key
        @timeout = timeout
        @ssl = ssl_context_options
        @idle = Queue.new
        @pid = Process.pid
      end

      # Asks once. Raises an Error for every answer but 2xx.
      def ask(method, path, query: {}, body: nil, headers: {})
        with_connection do |http|
          request = request(method, path, query, body, headers)
          answer = nil
          http.request(request) { |response| answer = read(response) }
          HTTP.check(answer)
          answer
        end
      end

      # Opens a stream of lines and yields each. `opened` is given the connection, whose `finish`
      # by another thread breaks the stream. Returns when the stream ended.
      def stream(method, path, query: {}, body: nil, silence:, opened:)
        http = connect
        http.read_timeout = silence
        begin
          opened.call(http)
          http.request(request(method, path, query, body, {})) do |response|
            if response.code != "200"
              HTTP.check(read(response))
              raise UnexpectedAnswer, "a stream with status #{response.code}"
            end
            lines(response) { |line| yield line }
          end
        ensure
          finish(http)
        end
      rescue *NETWORK_ERRORS => e
        raise ConnectionFailed, "#{e.class}: #{e.message}"
      end

      def close
        finish(@idle.pop(true)) until @idle.empty?
      rescue ThreadError
        nil # another thread took the last one
      end

      # Raises what an answer stands for, if it is none of 2xx.
      def self.check(answer)
        status = answer.status
        return if (200..299).cover?(status)
        raise ConnectionFailed, "a proxy does not reach the daemon: #{status}" if NOT_REACHED.include?(status)

        code, detail, request_id = problem(answer)
        case status
        when 401, 403
          raise NotAllowed.new(status, code, detail, request_id)
        when 429, 503
          wait = Float(answer.headers["retry-after"], exception: false)
          wait = wait&.between?(0, Float::MAX) ? [wait, MAX_RETRY_AFTER].min : nil
          raise TemporarilyRefused.new(status, code, detail, request_id, wait)
        when 400..499
          raise InvalidRequest.new(status, code, detail, request_id)
        when 500..599
          raise RequestRefused.new(status, code, detail, request_id)
        else
          raise UnexpectedAnswer, "an answer with status #{status}; is the URL right?"
        end
      end

      def self.problem(answer)
        document = parse(answer.body)
        if document.is_a?(Hash) && document["code"].is_a?(String)
          return [document["code"], document["detail"].to_s[0, MAX_DETAIL], document["request_id"]]
        end
        quoted(answer)
      rescue UnexpectedAnswer
        quoted(answer)
      end

      def self.quoted(answer)
        text = answer.body.dup.force_encoding(Encoding::UTF_8).scrub[0, MAX_DETAIL]
        ["", text.empty? ? "no reason given" : text, nil]
      end
      private_class_method :problem, :quoted

      private

      def with_connection
        if @pid != Process.pid # forked: the connections are the parent's
          @idle = Queue.new
          @pid = Process.pid
        end
        http = begin
          @idle.pop(true)
        rescue ThreadError
          connect
        end
        result = nil
        begin
          result = yield http
        rescue RequestRefused
          @idle << http
          raise
        rescue Exception # rubocop:disable Lint/RescueException -- nobody knows what is half read
          finish(http)
          raise
        end
        @idle << http
        result
      rescue *NETWORK_ERRORS => e
        raise ConnectionFailed, "#{e.class}: #{e.message}"
      end

      def connect
        http = Net::HTTP.new(@uri.host, @uri.port)
        http.use_ssl = @uri.scheme == "https"
        @ssl.each { |name, value| http.public_send("#{name}=", value) }
        http.open_timeout = http.read_timeout = http.write_timeout = @timeout
        http.max_retries = 0 # what may be sent again is decided elsewhere
        http.start
      rescue *NETWORK_ERRORS => e
        raise ConnectionFailed, "#{e.class}: #{e.message}"
      end

      def finish(http)
        http.finish if http.started?
      rescue *NETWORK_ERRORS
        nil
      end

      def request(method, path, query, body, headers)
        query = query.compact
        target = query.empty? ? @path + path : "#{@path}#{path}?#{URI.encode_www_form(query)}"
        request = Net::HTTPGenericRequest.new(method, !body.nil?, true, target)
        request["Accept-Encoding"] = "identity"
        request["Authorization"] = "Bearer #{@key}" if @key
        request["User-Agent"] = "messagebusd-client-ruby"
        headers.each { |name, value| request[name] = value }
        if body
          request["Content-Type"] = "application/json"
          request.body = body
        end
        request
      end

      def read(response)
        deadline = now + @timeout
        body = String.new
        response.read_body do |part|
          body << part
          raise ConnectionFailed, "the answer did not come in time" if now > deadline
          raise UnexpectedAnswer, "an answer of more than #{MAX_BYTES} bytes" if body.bytesize > MAX_BYTES
        end
        Answer.new(response.code.to_i, response.each_header.to_h, body)
      end

      def lines(response)
        rest = String.new
        response.read_body do |part|
          rest << part
          if part.include?("\n")
            *whole, rest = rest.split("\n", -1)
            whole.each { |line| yield line }
          end
          raise UnexpectedAnswer, "a line of more than #{MAX_BYTES} bytes" if rest.bytesize > MAX_BYTES
        end
      end

      def now
        Process.clock_gettime(Process::CLOCK_MONOTONIC)
      end
    end
  end
end
