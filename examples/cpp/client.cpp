// A client of Slipstream in C++: a DEALER socket and MessagePack; docs/protocol.md is what it speaks.
//
//   make && ./client ENDPOINT PROMPT [MAX_TOKENS]

#include <cstdlib>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <msgpack.hpp>
#include <zmq.hpp>

using Map = std::map<std::string, msgpack::object>;

constexpr int silence_ms = 3000;  // a service says something at least once a second while a request is open
constexpr int most_connections = 5;

template <typename T>
T get(const Map& map, const std::string& key, T otherwise = {}) {
    const auto found = map.find(key);
    return found == map.end() || found->second.is_nil() ? otherwise : found->second.as<T>();
}

struct Request {
    std::string id, prompt;
    int max_tokens;
    std::vector<int> received;  // sent again after a lost connection, so that the answer goes on from there
};

void send(zmq::socket_t& socket, const msgpack::sbuffer& frame) {
    socket.send(zmq::buffer(frame.data(), frame.size()), zmq::send_flags::none);
}

void say_hello(zmq::socket_t& socket) {
    msgpack::sbuffer frame;
    msgpack::packer packer(frame);
    packer.pack_map(3);
    packer.pack("t").pack("hello");
    packer.pack("protocol").pack(std::vector<int>{1, 0});
    packer.pack("client").pack("c++");
    send(socket, frame);
}

void ask(zmq::socket_t& socket, const Request& request) {
    msgpack::sbuffer frame;
    msgpack::packer packer(frame);
    packer.pack_map(5);
    packer.pack("t").pack("generate");
    packer.pack("id").pack(request.id);
    packer.pack("prompt").pack(request.prompt);
    packer.pack("params").pack_map(3);
    packer.pack("max_tokens").pack(request.max_tokens);
    packer.pack("temperature").pack(0.0);
    packer.pack("seed").pack(7);
    packer.pack("received").pack(request.received);
    send(socket, frame);
}

// Print what a message has for the request; true when the answer is finished. An error is thrown.
bool take(const Map& message, Request& request) {
    const auto type = get<std::string>(message, "t");
    const auto id = get<std::string>(message, "id", request.id);
    if (type == "error" && id == request.id)
        throw std::runtime_error(get<std::string>(message, "code") + ": " + get<std::string>(message, "message"));
    if (type != "deltas") return false;  // welcome, pong, or what a later version adds
    for (const auto& delta : get<std::vector<Map>>(message, "items")) {
        if (get<std::string>(delta, "id") != request.id) continue;
        std::cout << get<std::string>(delta, "text") << std::flush;
        for (int token : get<std::vector<int>>(delta, "token_ids")) request.received.push_back(token);
        if (!get<std::string>(delta, "finish_reason").empty()) return true;
    }
    return false;
}

int main(int argc, char** argv) try {
    if (argc < 3) throw std::runtime_error("usage: client ENDPOINT PROMPT [MAX_TOKENS]");
    Request request{"c++-1", argv[2], argc > 3 ? std::atoi(argv[3]) : 64, {}};
    zmq::context_t context;
    for (int connection = 0; connection < most_connections; ++connection) {
        zmq::socket_t socket(context, zmq::socket_type::dealer);
        socket.set(zmq::sockopt::linger, 0);
        socket.set(zmq::sockopt::rcvtimeo, silence_ms);
        socket.connect(argv[1]);
        say_hello(socket);
        ask(socket, request);
        zmq::message_t frame;
        while (socket.recv(frame)) {  // nothing: silence, so begin again on a new connection
            const auto unpacked = msgpack::unpack(static_cast<const char*>(frame.data()), frame.size());
            if (take(unpacked.get().as<Map>(), request)) return 0;
        }
    }
    throw std::runtime_error(std::string("unavailable: ") + argv[1] + " does not answer");
} catch (const std::exception& error) {
    std::cerr << "\n" << error.what() << std::endl;
    return 1;
}
