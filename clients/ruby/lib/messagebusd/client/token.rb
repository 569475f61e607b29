# frozen_string_literal: true

require "json"
require "openssl"

module Messagebusd
  MIN_SECRET_BYTES = 32
  private_constant :MIN_SECRET_BYTES

  # Returns a JSON Web Token (HS256) that says who a subscriber is, for lookup mode `jwt`. It is good
  # for `expires_in` seconds, and a poll ends with it. `audience` is the daemon's, where the secret
  # also signs other tokens; `claims` are added, or take the place of the others. Raises ArgumentError
  # for a secret that could be guessed.
  def self.mint_token(
    secret, user_id, expires_in:, group_ids: nil, site_id: nil, channels: nil, audience: nil, claims: {},
    now: Time.now
  )
    raise ArgumentError, "the secret must have at least #{MIN_SECRET_BYTES} bytes" if secret.bytesize < MIN_SECRET_BYTES

    issued_at = now.to_i
    named = { sub: user_id, groups: group_ids, site: site_id, channels: channels, aud: audience }.compact
    payload = { iat: issued_at, exp: issued_at + expires_in.to_i, **named, **claims.transform_keys(&:to_sym) }
    base64url = ->(bytes) { [bytes].pack("m0").tr("+/", "-_").delete("=") }
    text = [{ alg: "HS256", typ: "JWT" }, payload].map { |each| base64url.(JSON.generate(each)) }.join(".")
    "#{text}.#{base64url.(OpenSSL::HMAC.digest("SHA256", secret, text))}"
  end
end
