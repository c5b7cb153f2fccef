// ps-lite beside hpcps: a worker and a server on loopback, started by ps_lite.py.
//
//   ps_lite SIZES WIDTHS     (bytes of dense arrays, numbers in a row; separated by commas)
//
// What is timed is what server_rank.py times: a push and a pull of a dense array, together; a push of 10,000 random rows
// that the server has, until it is acknowledged; a pull of them; a push of rows that it has not. Pushes are added to what the server has: one array of a dense key, an
// unordered_map of rows, of which KVServerDefaultHandle's is that of rows one number wide. The worker prints one line of
// JSON: a list of {"what", "size", "seconds": one each, "wrong"}.
//
//   g++ -std=c++14 -O3 -DNDEBUG -I PS_LITE/include bench/peers/ps_lite.cc PS_LITE/build/libps.a -o ps_lite -lzmq -pthread
//
// and -lprotobuf-lite, where the version of ps-lite has its metadata by protobuf.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

#include "ps/ps.h"

namespace {

using ps::Key;
using Pairs = ps::KVPairs<float>;
using Server = ps::KVServer<float>;
using Worker = ps::KVWorker<float>;

constexpr int kDense = -1;  // a request's cmd: one array; else the width of its rows
constexpr int kWarmUps = 5, kSets = 20, kKeys = 10000, kCalls = 200, kNewCalls = 60;
constexpr size_t kRows = size_t(1) << 20;

struct Handle {
  void operator()(const ps::KVMeta& meta, const Pairs& request, Server* server) {
    if (meta.cmd == 1) {
      numbers(meta, request, server);
      return;
    }
    Pairs answer;
    if (!meta.push) answer.keys = request.keys;
    meta.cmd == kDense ? Array(meta, request, &answer) : Rows(meta, request, &answer);
    server->Response(meta, answer);
  }

  void Array(const ps::KVMeta& meta, const Pairs& request, Pairs* answer) {
    auto& own = arrays[request.keys[0]];
    if (!meta.push) {
      int length = static_cast<int>(own.size());
      answer->vals.CopyFrom(own.data(), own.size());
      answer->lens.CopyFrom(&length, 1);
    } else if (own.size() == 0) {
      own.CopyFrom(request.vals.data(), request.vals.size());
    } else {
      const float* given = request.vals.data();
      float* sum = own.data();
      for (size_t i = 0; i < own.size(); ++i) sum[i] += given[i];
    }
  }

  void Rows(const ps::KVMeta& meta, const Pairs& request, Pairs* answer) {
    auto& table = tables[meta.cmd];
    const size_t width = meta.cmd, count = request.keys.size();
    if (!meta.push) answer->vals.resize(count * width);
    for (size_t i = 0; i < count; ++i) {
      auto& row = table[request.keys[i]];
      if (row.empty()) row.resize(width);
      if (meta.push) {
        const float* given = request.vals.data() + i * width;
        for (size_t j = 0; j < width; ++j) row[j] += given[j];
      } else {
        std::memcpy(answer->vals.data() + i * width, row.data(), width * sizeof(float));
      }
    }
  }

  ps::KVServerDefaultHandle<float> numbers;
  std::unordered_map<Key, ps::SArray<float>> arrays;
  std::unordered_map<int, std::unordered_map<Key, std::vector<float>>> tables;
};

template <typename Call>
std::vector<double> Timed(int count, Call call) {
  std::vector<double> seconds;
  for (int number = 0; number < count + kWarmUps; ++number) {
    const auto started = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    if (number >= kWarmUps) seconds.push_back(took.count());
  }
  return seconds;
}

std::string Told(const std::string& what, size_t size, const std::vector<double>& seconds, size_t wrong) {
  std::ostringstream out;
  out << "{\"what\": \"" << what << "\", \"size\": " << size << ", \"wrong\": " << wrong << ", \"seconds\": [";
  for (size_t i = 0; i < seconds.size(); ++i) out << (i ? ", " : "") << seconds[i];
  out << "]}";
  return out.str();
}

std::string Dense(Worker* worker, Key key, size_t size) {
  const size_t count = size / sizeof(float);
  ps::SArray<Key> keys(1, key);
  ps::SArray<int> lengths(1, static_cast<int>(count)), came(1, 0);
  ps::SArray<float> gradient(count, 0), params(count, 0);
  for (size_t i = 0; i < count; ++i) gradient[i] = static_cast<float>(i % 7);
  int pushed = 0;
  const int calls = static_cast<int>(std::max<size_t>(10, std::min<size_t>(500, (size_t(256) << 20) / size)));
  const auto seconds = Timed(calls, [&] {
    ++pushed;
    worker->Wait(worker->ZPush(keys, gradient, lengths, kDense));
    worker->Wait(worker->ZPull(keys, &params, &came, kDense));
  });
  size_t wrong = 0;
  for (size_t i = 0; i < count; ++i) wrong += params[i] != gradient[i] * pushed;
  return Told("push and pull", size, seconds, wrong);
}

std::string Sparse(Worker* worker, int width) {
  std::mt19937_64 random(0);
  std::vector<ps::SArray<Key>> sets;
  for (int set = 0; set < kSets; ++set) {
    std::vector<bool> is_in(kRows);
    for (int found = 0; found < kKeys;) {
      const size_t key = random() % kRows;
      if (!is_in[key]) is_in[key] = true, ++found;
    }
    ps::SArray<Key> keys;
    for (size_t key = 0; key < kRows; ++key) {
      if (is_in[key]) keys.push_back(key);
    }
    sets.push_back(keys);
  }
  const size_t numbers = size_t(kKeys) * width;
  ps::SArray<float> values(numbers, 0), rows(numbers, 0);
  for (size_t i = 0; i < numbers; ++i) values[i] = static_cast<float>(i % 5);
  std::vector<float> expected(kRows * width, 0);
  int step = 0;
  const auto pushes = Timed(kCalls, [&] { worker->Wait(worker->ZPush(sets[step++ % kSets], values, {}, width)); });
  for (int number = 0; number < step; ++number) {
    for (size_t i = 0; i < numbers; ++i) expected[sets[number % kSets][i / width] * width + i % width] += values[i];
  }
  const auto pulls = Timed(kCalls, [&] { worker->Wait(worker->ZPull(sets[step++ % kSets], &rows, nullptr, width)); });
  size_t wrong = 0;
  for (const auto& keys : sets) {
    worker->Wait(worker->ZPull(keys, &rows, nullptr, width));
    for (size_t i = 0; i < numbers; ++i) wrong += rows[i] != expected[keys[i / width] * width + i % width];
  }
  std::vector<ps::SArray<Key>> unknown;
  for (int call = 0; call < kNewCalls + kWarmUps; ++call) {
    std::set<Key> chosen;
    while (chosen.size() < static_cast<size_t>(kKeys)) chosen.insert(kRows + (random() >> 2));
    unknown.emplace_back(std::vector<Key>(chosen.begin(), chosen.end()));
  }
  int next = 0;
  const auto makes = Timed(kNewCalls, [&] { worker->Wait(worker->ZPush(unknown[next++], values, {}, width)); });
  for (const auto& keys : unknown) {
    worker->Wait(worker->ZPull(keys, &rows, nullptr, width));
    for (size_t i = 0; i < numbers; ++i) wrong += rows[i] != values[i];
  }
  const std::string wide = std::to_string(width) + " wide";
  const size_t size = kKeys * (sizeof(Key) + sizeof(float) * width);
  return Told("sparse push, " + wide, size, pushes, wrong) + ", " + Told("sparse pull, " + wide, size, pulls, wrong) +
         ", " + Told("sparse push of new rows, " + wide, size, makes, wrong);
}

std::vector<size_t> Numbers(const char* words) {
  std::vector<size_t> found;
  std::stringstream in(words);
  for (std::string word; std::getline(in, word, ',');) found.push_back(std::stoul(word));
  return found;
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return 2;
  ps::Start(0);
  if (ps::IsServer()) {
    auto* server = new Server(0);
    server->set_request_handle(Handle());
    ps::RegisterExitCallback([server] { delete server; });
  }
  if (ps::IsWorker()) {
    Worker worker(0, 0);
    std::string told;
    Key key = kRows;
    for (size_t size : Numbers(words[1])) told += (told.empty() ? "" : ", ") + Dense(&worker, ++key, size);
    for (size_t width : Numbers(words[2])) {
      told += (told.empty() ? "" : ", ") + Sparse(&worker, static_cast<int>(width));
    }
    std::printf("[%s]\n", told.c_str());
    std::fflush(stdout);
  }
  ps::Finalize(0, true);
  return 0;
}
