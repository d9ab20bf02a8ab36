#include "daemon/http_server.h"

#include <pthread.h>
#include <signal.h>
#include <sys/types.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <exception>
#include <map>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "daemon/http_connection.h"

namespace bitpager::daemon {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using wire::Code;
using wire::Result;
using wire::Status;

// Without descriptors nobody can be taken on until somebody goes.
constexpr std::chrono::milliseconds kRetryAccept{100};

Status CannotServe(const HttpAddress& address, const error_code& error) {
  Code code = Code::kInvalidArgument;
  const char* hint = "an address of this machine";
  if (error == asio::error::address_in_use) {
    code = Code::kAlreadyExists;
    hint = "another port, or port 0 for a free one";
  } else if (error == asio::error::access_denied) {
    code = Code::kPermissionDenied;
    hint = "a port above 1023";
  }
  return {code, "cannot serve HTTP on " + ToText(address) + " (" + error.message() + "). Hint: " + hint};
}

}  // namespace

// Everything here is the HTTP thread's, but for `events` and what Bind and Serve do before the thread is
// there.
struct HttpServer::Impl {
  Impl(HttpSite& site_in, EventLog& events_in, HttpLimits limits_in)
      : site(site_in),
        events(events_in),
        limits(limits_in),
        room{site, limits, true,
             [this](const std::shared_ptr<HttpConnection>& one) { return TakeStream(one); },
             [this](HttpConnection* one) {
               connections.erase(one);
               streams.erase(one);
             }} {}

  [[nodiscard]] Status Bind(const HttpAddress& address);
  void Accept();
  void Take(tcp::socket socket);
  [[nodiscard]] bool TakeStream(const std::shared_ptr<HttpConnection>& one);
  void Wait();
  void Tick();
  void Tell(HttpConnection& one);
  void TellEvents();
  void Run();
  void End();

  HttpSite& site;
  EventLog& events;
  const HttpLimits limits;
  HttpRoom room;
  // Connections take themselves out when they go, so these go after `io`, which may hold the last of them.
  std::set<HttpConnection*> connections;
  std::set<HttpConnection*> streams;
  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  asio::steady_timer retry{io};
  asio::steady_timer tick{io};
  std::uint64_t next_event = 0;
  int watch = 0;
  std::thread thread;
};

Status HttpServer::Impl::Bind(const HttpAddress& address) {
  error_code error;
  const tcp::endpoint endpoint(asio::ip::make_address(address.ip, error), address.port);
  if (!error) acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error && endpoint.address().is_v6()) acceptor.set_option(asio::ip::v6_only(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  return error ? CannotServe(address, error) : Status();
}

void HttpServer::Impl::Accept() {
  if (!acceptor.is_open()) return;  // the end, whatever was queued before it
  acceptor.async_accept([this](error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted || !acceptor.is_open()) return;
    if (!error) {
      Accept();  // first: whatever becomes of this one
      return Take(std::move(socket));
    }
    retry.expires_after(kRetryAccept);
    retry.async_wait([this](error_code cancelled) {
      if (!cancelled) Accept();
    });
  });
}

// Whoever has waited longest without asking anything makes room.
void HttpServer::Impl::Take(tcp::socket socket) {
  const auto one = std::make_shared<HttpConnection>(std::move(socket), room);
  if (connections.size() >= limits.connections) {
    HttpConnection* oldest = nullptr;
    for (HttpConnection* each : connections) {
      if (!each->waiting_since()) continue;
      if (oldest == nullptr || *each->waiting_since() < *oldest->waiting_since()) oldest = each;
    }
    if (oldest == nullptr) return one->Refuse();
    connections.erase(oldest);
    oldest->Close();
  }
  connections.insert(one.get());
  one->Start();
}

bool HttpServer::Impl::TakeStream(const std::shared_ptr<HttpConnection>& one) {
  if (streams.size() >= limits.streams) return false;
  streams.insert(one.get());
  // Those from next_event on are told to all.
  const std::uint64_t last = next_event - 1;
  one->Resume(last, one->had() ? events.Between(*one->had(), next_event) : std::vector<Event>());
  if (streams.size() == 1) Wait();
  asio::post(io, [this, weak = std::weak_ptr<HttpConnection>(one)] {
    if (const auto there = weak.lock(); there) Tell(*there);
  });
  return true;
}

// Goes on while somebody listens.
void HttpServer::Impl::Wait() {
  tick.expires_after(std::chrono::milliseconds(limits.stream_ms));
  tick.async_wait([this](error_code cancelled) {
    if (cancelled || streams.empty()) return;
    try {
      Tick();
    } catch (const std::exception&) {  // no memory for this one: the next may have it
    }
    Wait();
  });
}

void HttpServer::Impl::Tick() {
  for (HttpConnection* one : std::vector<HttpConnection*>(streams.begin(), streams.end())) Tell(*one);
}

// All that is told within a moment is of one snapshot: the site sees to it.
void HttpServer::Impl::Tell(HttpConnection& one) {
  const auto status = site.StatusJson();
  const auto pages = site.PagesJson(one.cells());
  if (status.ok()) one.SendStatus(*status);
  if (pages.ok()) one.SendPages(*pages);
  if (!status.ok())
    one.SendComment(std::make_shared<const std::string>(wire::CodeName(status.status().code())));
}

void HttpServer::Impl::TellEvents() {
  if (streams.empty()) {
    next_event = events.Next();
    return;
  }
  for (const Event& event : events.Since(next_event)) {
    const auto json = std::make_shared<const std::string>(ToJson(event));
    for (HttpConnection* one : std::vector<HttpConnection*>(streams.begin(), streams.end()))
      one->SendEvent(event.id, json);
  }
}

void HttpServer::Impl::Run() {
  ::pthread_setname_np(::pthread_self(), "bp-http");
  for (;;) {
    try {
      io.run();
      return;
    } catch (const std::exception&) {  // no memory for this answer: its connection ends with its handler
    }
  }
}

void HttpServer::Impl::End() {
  events.Unwatch(watch);
  asio::post(io, [this] {
    error_code ignored;
    acceptor.close(ignored);
    retry.cancel();
    tick.cancel();
    for (HttpConnection* one : std::vector<HttpConnection*>(connections.begin(), connections.end()))
      one->Close();
    for (HttpConnection* one : std::vector<HttpConnection*>(streams.begin(), streams.end())) one->Close();
  });
  if (thread.joinable()) thread.join();
}

Result<std::unique_ptr<HttpServer>> HttpServer::Bind(const HttpAddress& address, HttpSite& site,
                                                     EventLog& events, HttpLimits limits) {
  auto impl = std::make_unique<Impl>(site, events, limits);
  impl->room.own_host_only = address.loopback;
  const Status bound = impl->Bind(address);
  if (!bound.ok()) return bound;
  std::unique_ptr<HttpServer> server(new HttpServer(std::move(impl)));
  server->address_ = address;
  error_code ignored;
  server->address_.port = server->impl_->acceptor.local_endpoint(ignored).port();
  return server;
}

void HttpServer::Serve() {
  Impl* const impl = impl_.get();
  impl->next_event = impl->events.Next();
  impl->watch = impl->events.Watch([impl] { asio::post(impl->io, [impl] { impl->TellEvents(); }); });
  impl->Accept();
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are main's; the thread inherits the mask
  impl->thread = std::thread([impl] { impl->Run(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpServer::~HttpServer() {
  impl_->End();
}

}  // namespace bitpager::daemon
