# frozen_string_literal: true

module Messagebusd
  # Base of everything that is raised here on purpose:
  #
  #   Error
  #   ├── ConnectionFailed        nobody answered, in time, or the answer broke off
  #   ├── UnexpectedAnswer        what answered is not understood: is it messagebusd?
  #   ├── RequestRefused          the daemon said no; knows status, code, detail, request_id
  #   │   ├── InvalidRequest          400, 404, 413, 422: the request must be changed
  #   │   ├── NotAllowed              401, 403: the key must be changed
  #   │   └── TemporarilyRefused      429, 503: the same request may succeed later; retry_after
  #   └── InvalidWebhook          a webhook that must not be trusted; knows the reason
  #
  # The codes are those of docs/http-api.md.
  class Error < StandardError; end

  # Nobody answered, in time, or the answer broke off.
  class ConnectionFailed < Error; end

  # What answered is not understood: is it messagebusd?
  class UnexpectedAnswer < Error; end

  # The daemon refused; `code` is its reason, empty if a proxy answered in its place.
  class RequestRefused < Error
    # Of the answer, or of its problem document; `request_id` is what the daemon's log knows it by.
    attr_reader :status, :code, :detail, :request_id

    def initialize(status, code, detail, request_id = nil) # :nodoc:
      super(code.empty? ? "#{status}: #{detail}" : "#{status} #{code}: #{detail}")
      @status = status
      @code = code
      @detail = detail
      @request_id = request_id
    end
  end

  # 400, 404, 413, 422: the request must be changed.
  class InvalidRequest < RequestRefused; end

  # 401, 403: the key must be changed.
  class NotAllowed < RequestRefused; end

  # 429, 503: the same request may succeed later.
  class TemporarilyRefused < RequestRefused
    # The seconds after which to come back, if the daemon said so.
    attr_reader :retry_after

    def initialize(status, code, detail, request_id = nil, retry_after = nil) # :nodoc:
      super(status, code, detail, request_id)
      @retry_after = retry_after
    end
  end

  # A webhook that must not be trusted.
  class InvalidWebhook < Error
    # :missing_header, :invalid_timestamp, :too_old, :too_new or :no_matching_signature
    attr_reader :reason

    def initialize(reason) # :nodoc:
      super("the webhook is not to be trusted: #{reason}")
      @reason = reason
    end
  end
end
