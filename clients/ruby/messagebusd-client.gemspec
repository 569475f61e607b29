# frozen_string_literal: true

require_relative "lib/messagebusd/client/version"

Gem::Specification.new do |spec|
  spec.name = "messagebusd-client"
  spec.version = Messagebusd::Client::VERSION
  spec.summary = "Client for messagebusd: publish, read and follow channels, verify webhooks"
  spec.authors = ["The messagebusd authors"]
  spec.license = "MIT"
  spec.required_ruby_version = ">= 3.1"
  spec.files = Dir["lib/**/*.rb", "README.md", "LICENSE"]
  spec.require_paths = ["lib"]
end
