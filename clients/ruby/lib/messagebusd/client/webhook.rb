# frozen_string_literal: true

require "openssl"

module Messagebusd
  # Checks that a webhook comes from messagebusd: signatures as standardwebhooks.com says.
  #
  #   WEBHOOK = Messagebusd::WebhookVerifier.new(ENV.fetch("WEBHOOK_SECRET"))
  #   WEBHOOK.verify(request.body.read, request.env)     # Rack, Rails
  #
  # What is signed are the bytes of the body as they came: verify first, decode then.
  class WebhookVerifier
    # By so much a webhook's time may be off, either way.
    TOLERANCE_SECONDS = 300

    # A genuine webhook: its id, which repetitions share, and its time in seconds since 1970.
    Verified = Struct.new(:id, :timestamp)

    # Each secret is `whsec_` and base64, or text. To replace one, name both for a while.
    def initialize(*secrets, tolerance: TOLERANCE_SECONDS)
      raise ArgumentError, "name at least one secret" if secrets.empty?

      @keys = secrets.map { |each| key(each) }
      @tolerance = tolerance
    end

    # Returns the webhook's id and time. Raises InvalidWebhook.
    def verify(body, headers, now: Time.now)
      id = header(headers, "webhook-id")
      timestamp = header(headers, "webhook-timestamp")
      signatures = header(headers, "webhook-signature")
      raise InvalidWebhook, :invalid_timestamp unless timestamp.match?(/\A[0-9]{1,12}\z/)

      age = now.to_f - timestamp.to_i
      raise InvalidWebhook, :too_old if age > @tolerance
      raise InvalidWebhook, :too_new if age < -@tolerance
      raise InvalidWebhook, :no_matching_signature unless signed?("#{id}.#{timestamp}.".b + body.b, signatures)

      Verified.new(id, timestamp.to_i)
    end

    private

    # Compares every signature of the known version with every key, in constant time.
    def signed?(text, signatures)
      expected = @keys.map { |key| [OpenSSL::HMAC.digest("SHA256", key, text)].pack("m0") }
      given = signatures.split(" ").filter_map { |each| each.delete_prefix("v1,") if each.start_with?("v1,") }
      given.product(expected).count { |one, other| OpenSSL.secure_compare(one.b, other.b) }.positive?
    end

    def header(headers, name)
      names = [name, "http_#{name.tr("-", "_")}"]
      _, value = headers.find { |key, value| names.include?(key.to_s.downcase) && !value.to_s.empty? }
      value || raise(InvalidWebhook, :missing_header)
    end

    def key(secret)
      key = secret.start_with?("whsec_") ? secret.delete_prefix("whsec_").unpack1("m0") : secret.b
      raise ArgumentError, "the secret is empty" if key.empty?

      key
    end
  end
end
