# Users, the login and a form, which the page leaves to the reader.
require "logger"
require "rails"
require "action_controller/railtie"
require "action_view/railtie"
require "rack/handler/webrick"
require "messagebus_client"

class Forum < Rails::Application
  config.root = __dir__
  config.eager_load = false
  config.secret_key_base = ENV.fetch("SECRET_KEY")
  config.session_store :cookie_store, key: "_forum"
  config.hosts.clear
  config.logger = Logger.new($stderr)
  config.log_level = :warn
end

User = Struct.new(:id, :group_ids, :banned?)
USERS = [User.new(42, [7], false), User.new(43, [], false), User.new(44, [], true)].to_h { |each| [each.id, each] }

class ApplicationController < ActionController::Base
  protect_from_forgery with: :exception
  def current_user = USERS[session[:user_id]]
end

class FormsController < ApplicationController
  skip_forgery_protection

  def login
    session[:user_id] = params[:id].to_i
    render json: {}
  end

  def logout
    user = current_user
    reset_session
    MessagebusClient.log_out(user.id)
    render json: {}
  end

  def say
    said = JSON.parse(request.raw_post)
    MessagebusClient.publish("/topic/1", said["text"], **said["audience"].transform_keys(&:to_sym))
    render json: {}
  end
end

require_relative "config/messagebus"
Forum.initialize!
Forum.routes.append do
  post "login/:id", to: "forms#login"
  post "logout", to: "forms#logout"
  post "say", to: "forms#say"
end
Forum.routes_reloader.reload!
Rack::Handler::WEBrick.run(Forum, Host: "127.0.0.1", Port: ARGV[0].to_i, AccessLog: [])
